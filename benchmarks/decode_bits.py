"""What decoding in fewer bits loses: a real model's loss on responses that it was not trained on, and how often it
goes on as it does in fp32.

SmolLM2-135M-Instruct on instruction-data.json, in its own chat template. Asked of each kind of `--decode`: the loss on
the responses of the data, in nats a target; after every beginning of the answers that the plain path writes, whether
the likeliest token is the same; and whether its own greedy answers are the same from end to end.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks import common, real, results

KINDS = ("plain", "fp32", "bf16", "int8")
RECORDS, ANSWERS, NEW = 400, 100, 40
BATCH = 8


def work(task: dict) -> dict:
    """In a fresh process: all of it, kind by kind."""
    import numpy as np

    from gptft.data.examples import Example
    from gptft.device import Precision
    from gptft.evaluation.losses import measure_losses
    from gptft.fast.decoding_model import DecodingModel, arranged
    from gptft.generation import prompt_ids, stop_ids
    from gptft.loading import load

    model, tokenizer = load(Path(task["model"]))
    precision = Precision("fp32", model.device)
    records = real.read_records(Path(task["data"]))[-task["records"] :]
    expected, prompts = [], []
    for number, record in enumerate(records):
        messages = [{"role": "user", "content": question_of(record)}]
        answered = {"messages": [*messages, {"role": "assistant", "content": record["output"]}]}
        ids, spans = tokenizer.encode_segments(tokenizer.template.segments(answered))
        expected.append(Example(np.array(ids), spans, ("", number)))
        prompts.append(prompt_ids(tokenizer, messages))
    prompts = prompts[: task["answers"]]
    found: dict[str, dict] = {}
    plain: list[list[int]] = []
    for kind in KINDS:
        fast = arranged(model, kind, rows=BATCH)
        answers = greedy(fast, prompts, task["new"], stop_ids(tokenizer), tokenizer)
        plain = plain or answers
        rows = [
            Example(np.array(prompt + answer), [(len(prompt), len(prompt) + len(answer))], ("", number))
            for number, (prompt, answer) in enumerate(zip(prompts, plain, strict=True))
            if answer
        ]
        losses, same = (measure_losses(fast, each, BATCH, to_batch, precision) for each in (expected, rows))
        found[kind] = {
            "loss": losses.sums.sum() / losses.targets.sum(),
            "same_tokens": int(same.hits.sum()),
            "tokens": int(same.targets.sum()),
            "same_answers": sum(a == b for a, b in zip(answers, plain, strict=True)),
            "bytes": fast.copied_bytes if isinstance(fast, DecodingModel) else 0,
        }
    return {"kinds": found, "targets": int(losses.targets.sum()), "parameters": model.n_parameters()}


def question_of(record: dict) -> str:
    """A record's instruction, and its input on the next line."""
    return "\n".join(filter(None, (record["instruction"], record["input"])))


def to_batch(examples):
    """Pad with any id: what is padding has no target."""
    from gptft.collate import collate

    return collate(examples, pad_id=0)


def greedy(model, prompts: list[list[int]], new: int, stops, tokenizer) -> list[list[int]]:
    """The ids of the answers."""
    from gptft.decoding import decode

    answers: list[list[int]] = [[] for _ in prompts]
    for start in range(0, len(prompts), BATCH):
        some = prompts[start : start + BATCH]
        for pairs in decode(model, some, new, stops, tokenizer.n_vocab, holes=tokenizer.holes):
            for row, token in pairs:
                answers[start + row].append(token)
    return answers


def main(argv: list[str]) -> None:
    options = common.parser("decode_bits", __doc__, rounds=1).parse_args(argv)
    common.need("torch", "gguf")
    model, data = real.model_path(Path("smollm2")), common.instructions(options)
    sizes = {"records": RECORDS, "answers": ANSWERS, "new": NEW}
    if options.quick:
        sizes = {"records": 8, "answers": 4, "new": 8}
    settings = {"model": model.stem, "data": data.name, **sizes, "quick": options.quick}
    result = common.header("decode_bits", options, settings, ["torch", "gguf"])
    with common.temporary() as folder:
        env = common.environment(options) | {"GPTFT_CACHE": f"{folder}/cache"}
        result["summary"] = common.call("decode_bits", {"model": str(model), "data": str(data), **sizes}, env)
    results.save(result, common.results_folder(options))


def table(result: dict) -> str:
    """A row a kind; the losses and what they are above the plain path's."""
    summary, settings = result["summary"], result["settings"]
    plain = summary["kinds"]["plain"]["loss"]
    rows = [
        [
            kind,
            f"{found['bytes'] / 1e6:.0f} MB",
            f"{found['loss']:.4f} ({found['loss'] - plain:+.4f})",
            f"{found['same_tokens'] / found['tokens']:.1%}",
            f"{found['same_answers']} of {settings['answers']}",
        ]
        for kind, found in summary["kinds"].items()
    ]
    head = ["--decode", "weights beside the model's", "loss, nats a target", "same next token", "same answers"]
    return (
        f"{results.markdown(head, rows)}\n\n{settings['model']}, losses over {summary['targets']:,} targets of "
        f"{settings['records']} responses of {settings['data']}; {settings['answers']} greedy answers of up to "
        f"{settings['new']} tokens, {summary['kinds']['plain']['tokens']:,} in all."
    )


if __name__ == "__main__":
    common.answer(work)
