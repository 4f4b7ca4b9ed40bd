"""Exports of the Hugging Face kind, loaded by transformers itself."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hf_models import CASES, EXACT, T, V, reference
from toys import difference, toy_model

import gptft.export.hf
from gptft.adapters.lora import LoraConfig, add_lora
from gptft.checkpoint import model_id
from gptft.errors import UserError
from gptft.export.hf import CARD, export_hf
from gptft.formats.hf import load_hf
from gptft.formats.tensors import SAFETENSORS_NAMES
from gptft.generation import generate, prompt_ids
from gptft.loading import load, preset
from gptft.prompts import TEMPLATES, Template
from gptft.text.chat import ChatTemplate
from gptft.tokenizer import embedded

transformers = pytest.importorskip("transformers")
pytest.importorskip("safetensors")


def their_model(directory, dtype=torch.float32):
    return transformers.AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["fp64", "fp32"])
@pytest.mark.parametrize("case", CASES)
def test_transformers_loads_the_export_and_gives_the_same_logits(tmp_path, case, dtype):
    """Out and in again nothing changes, to the bit: neither in our weights nor in transformers' own logits. Ours and
    theirs agree as far as formats/test_families.py says."""
    theirs = reference(case, dtype, tmp_path / "theirs")
    ours = load_hf(tmp_path / "theirs", dtype)
    assert export_hf(ours, None, tmp_path / "out") == []
    again = load_hf(tmp_path / "out", dtype)
    assert again.config == ours.config
    for (name, a), (_, b) in zip(ours.named_parameters(), again.named_parameters(), strict=True):
        assert torch.equal(a, b), name
    loaded = their_model(tmp_path / "out", dtype)
    idx = torch.randint(0, V, (3, T), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert torch.equal(loaded(idx).logits, theirs(idx).logits)
        limit = 1e-5 if dtype == torch.float32 else 1e-10 if CASES[case][0] in EXACT else 1e-6
        assert difference(ours(idx), loaded(idx).logits) < limit


def test_transformers_finds_no_fault_with_an_export(tmp_path):
    """A missing or unexpected tensor would be filled with noise, and only a warning would say so."""
    for case in CASES:
        reference(case, torch.float32, tmp_path / case)
        export_hf(load_hf(tmp_path / case, torch.float32), None, tmp_path / f"{case}-out")
        _, found = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / f"{case}-out", output_loading_info=True)
        assert not any(found[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), case


def learned(template: str | None = "qa"):
    """The `tiny` preset with weights that give other text for other prompts, and its tokenizer."""
    torch.manual_seed(0)
    model = preset("tiny", seed=0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    tokenizer = embedded()
    tokenizer.template = TEMPLATES[template] if template else None
    return model.eval(), tokenizer


@pytest.mark.parametrize("template", ["qa", "alpaca", "chatml", "llama2"])
def test_the_greedy_text_is_the_same_in_transformers(tmp_path, template):
    """From the question to the answer: template, ids, cache, stop token and decoding."""
    model, tokenizer = learned(template)
    export_hf(model, tokenizer, tmp_path / "out")
    theirs, words = their_model(tmp_path / "out"), transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    questions = ["What is 17 times 3?", "Name a  colour.\n\nOr two: don't stop ...", "naïve 東京"]
    wanted = generate(model, tokenizer, questions, max_new_tokens=24)
    assert len(set(wanted)) > 1
    for question, text in zip(questions, wanted, strict=True):
        ids = words.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        assert ids["input_ids"][0].tolist() == prompt_ids(tokenizer, question)
        out = theirs.generate(**ids, max_new_tokens=24, do_sample=False)[0, ids["input_ids"].size(1) :]
        lead = tokenizer.template.lead
        assert words.decode(out, skip_special_tokens=True).removeprefix(lead) == text


def test_both_stop_at_the_token_that_ends_a_response(tmp_path):
    """Under a template of its own the end-of-text is not the end of a response: it must not be eos_token_id."""
    bare = embedded()
    tokenizer = type(bare)(bare.ranks, bare.pattern, {**bare.specials, "<|im_end|>": bare.n_vocab}, bos=bare.eot)
    tokenizer.template = TEMPLATES["chatml"]
    wider = toy_model(torch.float32, vocab_size=tokenizer.n_vocab + 5)
    export_hf(wider, tokenizer, tmp_path / "out")
    for file in ("config.json", "generation_config.json"):
        values = json.loads((tmp_path / "out" / file).read_text())
        assert values["eos_token_id"] == tokenizer.specials["<|im_end|>"] and values["bos_token_id"] == bare.eot
    tokenizer.end_ids = (3, tokenizer.stop)
    export_hf(wider, tokenizer, tmp_path / "more")  # what the model's own files named as ends stays named
    values = json.loads((tmp_path / "more" / "generation_config.json").read_text())
    assert values["eos_token_id"] == [tokenizer.stop, 3]
    # as padding, a row of the embedding would never be trained again; and a family's own default is another token
    assert json.loads((tmp_path / "out" / "config.json").read_text())["pad_token_id"] is None
    words = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert words("Hello")["input_ids"] == [bare.eot, *tokenizer.encode("Hello")]


@pytest.mark.parametrize("case", [case for case in CASES if "window" not in case])
def test_the_tokenizer_is_the_same_in_transformers_whatever_the_family(tmp_path, case):
    """AutoTokenizer looks at the model's type; for qwen2 it goes its own way, and the export says so."""
    tokenizer = embedded()
    reference(case, torch.float32, tmp_path / "theirs")
    config = load_hf(tmp_path / "theirs", torch.float32).config
    values = {name: getattr(config, name) for name in config.__dataclass_fields__} | {"vocab_size": tokenizer.n_vocab}
    notes = export_hf(toy_model(torch.float32, **values), tokenizer, tmp_path / "out")
    auto = transformers.AutoTokenizer
    if case == "qwen2":
        assert "PreTrainedTokenizerFast" in notes[0]
        auto = transformers.PreTrainedTokenizerFast
    words = auto.from_pretrained(tmp_path / "out")
    text = "Hello  world\n\n\n x = 12345 + 6789.10;  don't\t\tI'LL naïve café 東京 🙂🙂 ...!!!\n\n  end  "
    assert words(text)["input_ids"] == tokenizer.encode(text)
    assert words.decode(tokenizer.encode(text)) == text


def test_gptft_loads_its_export_under_the_same_model_id(tmp_path):
    """Weights, architecture and tokenizer are hashed, so the card's id is that of what was exported."""
    model, tokenizer = learned("qa")
    export_hf(model, tokenizer, tmp_path / "out")
    again, words = load(tmp_path / "out")
    assert model_id(again, words) == model_id(model, tokenizer)
    assert f"`{model_id(model, tokenizer)}`" in (tmp_path / "out" / "README.md").read_text()
    assert isinstance(words.template, ChatTemplate)
    questions = ["What is 17 times 3?", "Who?"]
    assert generate(again, words, questions, max_new_tokens=10) == generate(model, tokenizer, questions, 10)


def test_a_vocabulary_padded_beyond_the_tokenizers_is_fine(tmp_path):
    tokenizer = embedded()
    model = toy_model(torch.float32, vocab_size=tokenizer.n_vocab + 7)
    export_hf(model, tokenizer, tmp_path / "out")
    idx = torch.tensor([tokenizer.encode("What is that?")])
    with torch.no_grad():
        assert difference(model(idx), their_model(tmp_path / "out")(idx).logits) < 1e-5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_dtype_can_be_chosen(tmp_path, dtype):
    model = toy_model(torch.float32)
    export_hf(model, None, tmp_path / "out", dtype=dtype)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype="auto")
    assert theirs.dtype == dtype
    ours = load_hf(tmp_path / "out", dtype)
    for (name, a), (_, b) in zip(model.named_parameters(), ours.named_parameters(), strict=True):
        assert torch.equal(a.to(dtype), b), name
    assert model_id(ours, None) in (tmp_path / "out" / "README.md").read_text() or dtype == torch.float64


# ---- sharding


@pytest.mark.parametrize("case", ["gpt2", "pythia", "llama-biases"])
def test_large_models_are_cut_into_numbered_files(tmp_path, case):
    theirs = reference(case, torch.float32, tmp_path / "theirs")
    ours = load_hf(tmp_path / "theirs", torch.float32)
    limit = 20_000
    export_hf(ours, None, tmp_path / "out", shard_bytes=limit)
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(files) > 3 and files[0] == f"model-00001-of-{len(files):05d}.safetensors"
    assert set(index["weight_map"].values()) == set(files) and not (tmp_path / "out" / "model.safetensors").exists()
    assert index["metadata"]["total_size"] == 4 * ours.n_parameters()
    for file in files:
        held = [name for name, where in index["weight_map"].items() if where == file]
        assert (tmp_path / "out" / file).stat().st_size < limit + 2000 or len(held) == 1
    idx = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(their_model(tmp_path / "out")(idx).logits, theirs(idx).logits)
    for (name, a), (_, b) in zip(
        ours.named_parameters(), load_hf(tmp_path / "out", torch.float32).named_parameters(), strict=True
    ):
        assert torch.equal(a, b), name


def test_the_files_are_what_the_library_would_write(tmp_path):
    """The format is written by hand: safetensors itself reads names, shapes, dtypes and the metadata."""
    from safetensors import safe_open

    for dtype in SAFETENSORS_NAMES:
        model = toy_model(torch.float32)
        export_hf(model, None, tmp_path / str(dtype), dtype=dtype)
        with safe_open(tmp_path / str(dtype) / "model.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt"}
            names = set(file.keys())
            embedding = file.get_tensor("gpt_neox.embed_in.weight")
        assert torch.equal(embedding, model.tok.weight.to(dtype))
        assert "embed_out.weight" not in names  # the head is the embedding


def test_memory_stays_near_the_models_own(tmp_path):
    """126 MB of weights are written, and rounded on the way, with a fraction of that more: not all at once."""
    pytest.importorskip("resource")  # Windows has none
    code = (
        "import resource, sys; sys.path[:0] = sys.argv[2:]\n"
        "import torch; from toys import toy_model; from gptft.export.hf import export_hf\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "export_hf(toy_model(torch.float32), None, sys.argv[1] + '/small')\n"  # what is loaded once
        "model = toy_model(torch.float32, n_embd=512, n_layer=10)\n"
        "before = peak()\n"
        "export_hf(model, None, sys.argv[1] + '/large', dtype=torch.bfloat16)\n"
        "print(model.n_parameters() * 4 // 1024, before, peak())"
    )
    paths = [Path(gptft.__file__).parents[1], Path(__file__).parents[1]]
    done = subprocess.run([sys.executable, "-c", code, tmp_path, *paths], capture_output=True, text=True, check=True)
    weights, before, after = map(int, done.stdout.split())  # kB
    assert weights > 100_000 and after - before < weights / 4, (weights, before, after)


# ---- the model card


def test_the_card_says_what_the_model_is(tmp_path):
    model, tokenizer = learned("qa")
    card = {
        "name": "me/answers",
        "base": "EleutherAI/pythia-70m",
        "data": "1,100 questions",
        "license": "mit",
        "language": ["en"],
        "figures": {"validation loss": 1.2345678, "test records": 100},
    }
    assert set(card) == set(CARD)
    export_hf(model, tokenizer, tmp_path / "out", card=card)
    text = (tmp_path / "out" / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    yaml = pytest.importorskip("yaml")
    assert yaml.safe_load(front) == {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["gptft", "gpt_neox"],
        "license": "mit",
        "language": ["en"],
        "base_model": "EleutherAI/pythia-70m",
    }
    assert (
        "# me/answers\n" in body and "Trained on 1,100 questions." in body and "| validation loss | 1.23457 |" in body
    )
    assert "### Question:\nWhat is the capital of France?\n\n### Answer:\n" in body
    assert f"| weights | {model.n_parameters():,} in float32 |" in body and 'from_pretrained("me/answers")' in body
    export_hf(model, tokenizer, tmp_path / "scratch", card={"base": "tiny", "data": "", "figures": {}})
    text = (tmp_path / "scratch" / "README.md").read_text()
    assert "Trained from scratch, as the preset tiny.\n" in text and "base_model" not in text and "# scratch" in text
    with pytest.raises(UserError, match="the model card: unknown key 'licence'; did you mean 'license'"):
        export_hf(model, tokenizer, tmp_path / "other", card={"licence": "mit"})
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("template", ["qa", None])
def test_the_cards_own_code_runs(tmp_path, monkeypatch, capsys, template):
    """What a reader will copy: with transformers and with gptft it prints the same answer."""
    model, tokenizer = learned(template)
    export_hf(model, tokenizer, tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    first, second = re.findall(r"```python\n(.*?)\n```", (tmp_path / "out" / "README.md").read_text(), re.S)
    exec(first, {})
    theirs = capsys.readouterr().out.removesuffix("\n")
    exec(second, {})
    assert capsys.readouterr().out.strip() == str([theirs])


def test_a_prompt_with_fences_does_not_break_the_card(tmp_path):
    model, tokenizer = learned()
    tokenizer.template = Template("fenced", prompt="```\n{prompt}\n```\n")
    export_hf(model, tokenizer, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "````text\n```\nWhat is the capital of France?\n```\n\n````\n" in text


# ---- what cannot be, and failures


def test_an_existing_directory_is_refused_unless_it_is_empty(tmp_path):
    model = toy_model(torch.float32)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "precious.txt").write_text("x")
    for place in (tmp_path / "full", tmp_path / "full" / "precious.txt"):
        with pytest.raises(UserError, match="exists already and is not empty"):
            export_hf(model, None, place)
    (tmp_path / "empty").mkdir()
    export_hf(model, None, tmp_path / "empty")
    assert (tmp_path / "empty" / "config.json").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_in_the_middle_leaves_nothing(tmp_path, monkeypatch, error):
    calls = []
    real = gptft.export.hf.write_safetensors

    def failing(path, tensors, dtype):
        calls.append(path)
        if len(calls) == 2:
            raise error
        real(path, tensors, dtype)

    monkeypatch.setattr(gptft.export.hf, "write_safetensors", failing)
    with pytest.raises((UserError, KeyboardInterrupt)) as caught:
        export_hf(toy_model(torch.float32), None, tmp_path / "out", shard_bytes=10_000)
    if isinstance(error, OSError):
        assert str(caught.value) == f"{tmp_path / 'out'} could not be written (No space left on device)"
    assert len(calls) == 2 and not list(tmp_path.iterdir())


def test_what_cannot_be_exported_is_refused_by_name(tmp_path):
    with pytest.raises(UserError, match="none that transformers has"):
        export_hf(toy_model(torch.float32, norm="rms"), None, tmp_path / "out")
    with pytest.raises(UserError, match=r"exported as torch.int8: one of float64, float32, bfloat16, float16"):
        export_hf(toy_model(torch.float32), None, tmp_path / "out", dtype=torch.int8)
    large = toy_model(torch.float32)
    with torch.no_grad():
        large.blocks[1].mlp.up.weight[3, 5] = 1e5
    with pytest.raises(UserError, match=r"layers.1.mlp.dense_h_to_4h.weight holds numbers beyond float16's"):
        export_hf(large, None, tmp_path / "out", dtype=torch.float16)
    with pytest.raises(UserError, match="the model has adapters: merge them first"):
        export_hf(add_lora(toy_model(torch.float32), LoraConfig(rank=2)), None, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_template_that_is_no_chat_template_is_left_out_and_it_is_said(tmp_path):
    model, tokenizer = learned()
    tokenizer.template = Template("own", prompt="{context} {prompt}")
    (note,) = export_hf(model, tokenizer, tmp_path / "out")
    assert "no chat template is carried along" in note and "'context'" in note
    card = (tmp_path / "out" / "README.md").read_text()
    assert "apply_chat_template" not in card and 'tokenizer("' in card
    assert "chat_template" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
