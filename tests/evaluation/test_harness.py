"""EleutherAI's harness over our model, beside the harness's own Hugging Face model on the same weights."""

import json
import random

import hf_families as families
import pytest
import torch
from cli import write

import gptft
from gptft.errors import UserError
from gptft.evaluation.harness import harness_model
from gptft.evaluation.tasks import run_tasks, task_of

transformers = pytest.importorskip("transformers")
lm_eval = pytest.importorskip("lm_eval")

SIZES = {"n_positions": 96, "n_embd": 48, "n_layer": 2, "n_head": 4}
LLAMA = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def lively(model):
    """Weights large enough that answers differ."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.08 * torch.randn_like(parameter))
    return model.eval()


@pytest.fixture(scope="module", params=["gpt2", "llama2", "smollm2"])
def both(request, tmp_path_factory):
    """(ours, theirs) of one checkpoint: without a beginning-of-text, with one, and with a chat template."""
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path_factory.mktemp(request.param)
    values, config, kind = getattr(families, request.param)()
    more = {"chat_template": CHATML} if request.param == "smollm2" else {}
    families.write(folder, values, config, kind, **more)
    (folder / "config.json").unlink()
    vocab = len(values["model"]["vocab"]) + len(values["added_tokens"])
    ends = {"bos_token_id": 1, "eos_token_id": 2 if request.param != "gpt2" else vocab - 1}
    if kind == "gpt2":
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(vocab_size=vocab, **SIZES, **ends))
    else:
        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(vocab_size=vocab, max_position_embeddings=96, **LLAMA, **ends)
        )
    lively(model).save_pretrained(folder)
    ours, tokenizer = gptft.load(folder)
    theirs = HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=4)
    return harness_model(ours, tokenizer, batch_size=4), theirs


def instances(kind, arguments):
    from lm_eval.api.instance import Instance

    return [Instance(request_type=kind, doc={}, arguments=each, idx=n) for n, each in enumerate(arguments)]


WORDS = "the lamp does not answer; press it for 10 seconds, and wait until it blinks blue - twice"


def texts(seed, count, most=30):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS.split(), k=rng.randint(1, most))) for _ in range(count)]


def test_every_log_likelihood_is_that_of_the_harness_own_model(both):
    """Contexts that several continuations share, empty ones, ones that end in a space, and ones that are too long."""
    ours, theirs = both
    asked = [(context, " " + ending) for context in texts(0, 6) for ending in texts(len(context), 4, 5)]
    asked += [("", text) for text in texts(1, 3)] + [(f"{text} ", "blue") for text in texts(2, 3)]
    asked += [("wait " * 200, " and press it"), ("wait", " " + "press " * 15)]
    found = ours.loglikelihood(instances("loglikelihood", asked), disable_tqdm=True)
    wanted = theirs.loglikelihood(instances("loglikelihood", asked), disable_tqdm=True)
    for pair, (value, greedy), (expected, likely) in zip(asked, found, wanted, strict=True):
        # fp32 in both, whose sums over tokens go in another order
        assert value == pytest.approx(expected, abs=1e-5 * max(1.0, abs(expected))), pair
        assert greedy == likely, pair


def test_texts_longer_than_the_model_are_rolled_over_alike(both):
    ours, theirs = both
    asked = [(text,) for text in [*texts(3, 4), " ".join(texts(4, 12))]]
    found = ours.loglikelihood_rolling(instances("loglikelihood_rolling", asked), disable_tqdm=True)
    wanted = theirs.loglikelihood_rolling(instances("loglikelihood_rolling", asked), disable_tqdm=True)
    assert found == pytest.approx(wanted, rel=1e-5)


def test_answers_are_the_same_and_end_where_the_task_says(both):
    ours, theirs = both
    first = theirs.generate_until(
        instances("generate_until", [(text, {"until": [], "max_gen_toks": 24}) for text in texts(5, 6)]), True
    )
    stop = next((text[3:5] for text in first if len(text) > 8), "a")
    for until in ([], [stop], [stop, "qqq"]):
        settings = {"until": until, "max_gen_toks": 24, "do_sample": False}
        asked = [(text, settings) for text in [*texts(5, 6), "wait " * 200]]
        found = ours.generate_until(instances("generate_until", asked), disable_tqdm=True)
        assert found == theirs.generate_until(instances("generate_until", asked), disable_tqdm=True)
        assert not until or not any(stop in text for text in found)


def test_settings_mean_what_the_harness_takes_them_for(both):
    """`do_sample: false` is greedy whatever the temperature, as many tasks have it; other names of the length count."""
    ours, theirs = both
    plain = ours.generate_until(instances("generate_until", [(t, {"max_gen_toks": 8}) for t in texts(5, 4)]), True)
    odd = {"do_sample": False, "temperature": 1.0, "max_new_tokens": 8, "until": []}
    asked = instances("generate_until", [(text, odd) for text in texts(5, 4)])
    assert ours.generate_until(asked, True) == plain == theirs.generate_until(asked, True)


def test_samples_of_one_prompt_differ_and_do_not_depend_on_the_batch(both):
    """Every batch began with the same random numbers: 64 samples for pass@k were 16, each four times."""
    ours, _ = both
    settings = {"do_sample": True, "temperature": 1.5, "max_gen_toks": 8, "until": []}
    asked = instances("generate_until", [("press the lamp", settings)] * 12)
    first = ours.generate_until(asked, True)
    assert len(set(first)) > 8
    ours.batch_size, before = 3, ours.batch_size
    try:
        assert ours.generate_until(asked, True) == first
    finally:
        ours.batch_size = before


def test_a_chat_prompt_is_that_of_transformers(both):
    ours, theirs = both
    turns = [{"role": "user", "content": "How?"}]
    if ours.chat_template(True) == "":
        with pytest.raises(UserError, match="has no prompt template"):
            ours.apply_chat_template(turns)
        return
    text = ours.apply_chat_template(turns)
    assert text == theirs.apply_chat_template(turns) and ours.tok_encode(text) == theirs.tok_encode(text)
    opened = [*turns, {"role": "assistant", "content": "So it"}]
    assert ours.apply_chat_template(opened, False) == theirs.apply_chat_template(opened, False)


HELLASWAG = """A lamp: it does not answer. he
1
waits for the blue.
presses it for 10 seconds.
is the lamp and blinks.
does not.
A lamp: it blinks twice. she
3
is blue.
does it.
waits until 10.
stops.
"""


def test_a_task_over_a_file_has_the_harness_own_score(both, tmp_path):
    """The whole way: the harness's prompts and metrics, of both models."""
    path = write(tmp_path / "hellaswag.txt", HELLASWAG * 3)
    how = {"bootstrap_iters": 0, "log_samples": True}
    ours, theirs = (run_tasks(model, [f"hellaswag={path}"], **how) for model in both)
    assert ours["results"]["hellaswag"]["acc,none"] == theirs["results"]["hellaswag"]["acc,none"]
    assert ours["results"]["hellaswag"]["acc_norm,none"] == theirs["results"]["hellaswag"]["acc_norm,none"]
    for mine, other in zip(ours["samples"]["hellaswag"], theirs["samples"]["hellaswag"], strict=True):
        for (value, _), (expected, _) in zip(mine["filtered_resps"], other["filtered_resps"], strict=True):
            assert float(value) == pytest.approx(float(expected), rel=1e-5)


def test_a_file_that_is_none_of_the_task_is_one_line(tmp_path):
    write(tmp_path / "short.txt", HELLASWAG + "one more line\n")
    write(tmp_path / "label.txt", HELLASWAG.replace("\n1\n", "\nx\n"))
    write(tmp_path / "other.csv", "Question,Answer\na,b\n")
    write(tmp_path / "broken.jsonl", '{"question": "a"\n')
    write(tmp_path / "cut.csv", "Question,Best Answer,Correct Answers,Incorrect Answers\na,b\n")
    write(tmp_path / "list.jsonl", "[1]\n")
    write(tmp_path / "test.jsonl", '{"question": "a\u2028b", "answer": "#### 1"}\n\n')
    write(tmp_path / "train.jsonl", "{")
    write(tmp_path / "empty.txt", "")
    for spec, message in (
        ("hellaswag={}/gone.txt", "no such file"),
        ("hellaswag={}/short.txt", "13 lines are no tasks of six lines each"),
        ("hellaswag={}/label.txt", "line 2: 'x' is no number of an ending"),
        ("hellaswag={}/empty.txt", "there is no task in it"),
        ("truthfulqa_mc1={}/other.csv", "has no 'Correct Answers': it is no file of such tasks"),
        ("truthfulqa_mc2={}/cut.csv", "cut.csv is no file of such tasks"),
        ("gsm8k={}/broken.jsonl", "broken.jsonl is no file of such tasks: line 1: Expecting"),
        ("gsm8k={}/list.jsonl", "list.jsonl is no file of such tasks"),
        ("gsm8k={}/test.jsonl", "train.jsonl is no file of such tasks"),
        ("arc_easy={}/short.txt", "of files there are hellaswag, truthfulqa_mc1, truthfulqa_mc2, gsm8k"),
    ):
        with pytest.raises(UserError, match=message):
            task_of(spec.format(tmp_path))


def test_the_real_files_are_read_whole(shared):
    folder = shared / "benchmarks"
    for name, file, split, count in (
        ("hellaswag", "hellaswag_val_full.txt.bz2", "validation", 10042),
        ("truthfulqa_mc1", "TruthfulQA.csv", "validation", 817),
        ("truthfulqa_mc2", "TruthfulQA.csv", "validation", 817),
        ("gsm8k", "gsm8k_test.jsonl", "test", 1319),
    ):
        assert len(task_of(f"{name}={folder / file}")["custom_dataset"]()[split]) == count


@pytest.mark.slow  # to look through all tasks of the harness
def test_the_command_prints_the_harness_table_and_keeps_its_results(tmp_path, capsys, monkeypatch):
    from gptft.__main__ import main

    monkeypatch.chdir(tmp_path)
    write("tasks.txt", HELLASWAG)
    main(["evaluate", "tiny", "--tasks", "hellaswag=tasks.txt", "--limit", "1", "--out", "kept"])
    said = capsys.readouterr().out
    kept = json.loads((tmp_path / "kept" / "benchmarks.json").read_text())["results"]["hellaswag"]
    rows = [line.split() for line in said.splitlines() if line.strip().startswith("hellaswag")]
    assert [row[4] for row in rows] == ["acc", "acc_norm"]  # the harness' own table had letters for its columns
    assert [row[5] for row in rows] == [f"{kept[f'{name},none']:.4f}" for name in ("acc", "acc_norm")]
    for words, message in (
        (["--tasks", "helaswag"], "--tasks helaswag: the harness has no such task"),
        (["--tasks", "hellaswag=tasks.txt", "--against", "tiny"], "--against and --tasks: measure one after the other"),
        (["--tasks", "hellaswag=tasks.txt", "--data", "d.jsonl"], "--data and --tasks: measure one after the other"),
        ([], "--data is missing: name the files to measure on, or benchmarks with --tasks"),
    ):
        with pytest.raises(UserError, match=message):
            main(["evaluate", "tiny", *words])
