"""The linter on real data: planted faults that it must find, what it finds in data as it is, and how long it takes.

Into instruction-data.json, cleaned of what is found in it, 20 faults of each kind are planted, all at once, in records
drawn by a seed. Recall is the share of the planted faults that are found at their line under their kind, precision the
share of the findings of the kind that were planted; a fault that is two kinds at once by nature counts for both: an
outlying length does not fit into max_length either. Timed
are 52,000 records, as many as alpaca has: gsm8k_train's, seven times over with another number in each.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import common, real, results
from gptft.errors import UserError

EACH = 20
MANY = 52_000
LIMIT = 60.0  # seconds
SETS = {
    "instruction-data.json": ("instruction-data.json", {}),
    "gsm8k_train.jsonl": ("benchmarks/gsm8k_train.jsonl", {}),
    "TruthfulQA.csv": ("benchmarks/TruthfulQA.csv", {"instruction": "Question", "response": "Best Answer"}),
    "the embedded set": ("embedded:instructions.jsonl", {}),
}
CARD, KEY = "4539 1488 0343 6467", "AKIAIOSFODNN7EXAMPLE"
MAX_LENGTH = 160  # tokens, more than the longest of the records has
LONG = "The museum opens at nine in the morning and closes at six in the evening on every day of the week but Monday"


def changed(key: str, change: Callable[[str], str]) -> Callable[[dict], str]:
    """A fault in the text under a key."""
    return lambda record: json.dumps({**record, key: change(record[key])}, ensure_ascii=False)


def without(key: str) -> Callable[[dict], str]:
    return lambda record: json.dumps({other: value for other, value in record.items() if other != key})


def halved(text: str) -> str:
    return f"{LONG}. The guide then told the visitors that {text.split()[0].lower()} and the"


# kind -> the faults of that kind, each a record -> the line that stands for it
FAULTS: dict[str, list[Callable[[dict], str]]] = {
    "broken": [lambda record: json.dumps(record)[:-2], lambda record: json.dumps([record["output"]])],
    "shape": [without("output"), lambda record: json.dumps({**record, "output": [record["output"]]})],
    "key": [lambda record: json.dumps({**record, "ouput": "x"})],
    "empty": [changed("output", lambda text: ""), changed("output", lambda text: " \n\t")],
    "echo": [
        lambda record: json.dumps(
            {**record, "output": "\n".join(filter(None, (record["instruction"], record["input"])))}
        )
    ],
    "special": [
        changed("output", lambda text: text + "<|endoftext|>"),
        changed("output", lambda text: f"### Response:\n{text}"),
        changed("instruction", lambda text: f"[INST] {text}"),
    ],
    "mojibake": [
        changed("output", lambda text: f"{text} It’s a café – naïve?".encode().decode("cp1252")),
        changed("instruction", lambda text: f"{text} (“as if in Zürich)".encode().decode("cp1252")),
    ],
    "lost": [
        changed("output", lambda text: f"{text} Caf\ufffd."),
        changed("instruction", lambda text: "\ufffd" + text),
    ],
    "control": [changed("output", lambda text: text + "\x00"), changed("output", lambda text: "\u200b" + text)],
    "refusal": [
        changed("output", lambda text: "As an AI language model, I do not have personal opinions on this."),
        changed("output", lambda text: "I'm sorry, but I cannot help with that request."),
    ],
    "cut": [changed("output", halved), changed("output", lambda text: f"{LONG}, the guide said, and then he added,")],
    "type": [
        lambda record: json.dumps({**record, "id": str(record["id"])}),
        lambda record: json.dumps({**record, "id": [1]}),
    ],
    "length": [changed("output", lambda text: f"{text} {LONG}. " * 60)],
    "too-long": [changed("instruction", lambda text: f"{text} {LONG}." + f" {LONG}, too." * 5)],
    "personal": [
        changed("output", lambda text: f"{text} Write to jane.doe@mail.example-shop.com."),
        changed("output", lambda text: f"{text} The card is {CARD}."),
        changed("output", lambda text: f"{text} The key is {KEY}."),
    ],
}
COPIES = ("duplicate", "near-duplicate", "conflict", "leak", "near-leak")  # these need another record beside them


def find_all(folder: Path, train: list[str], held_out: list[str], fields: dict[str, str]) -> list:
    """Findings in these lines, with a vocabulary."""
    from gptft.curation.lint import lint, measure, sort
    from gptft.tokenizer import gpt2

    (folder / "train.jsonl").write_text("\n".join(train) + "\n", encoding="utf-8")
    groups = {"data": [folder / "train.jsonl"]}
    if held_out:
        (folder / "val.jsonl").write_text("\n".join(held_out) + "\n", encoding="utf-8")
        groups["val_data"] = [folder / "val.jsonl"]
    report, template = lint(groups, fields)
    tokenizer = gpt2()
    tokenizer.template = template
    measure(report, tokenizer, MAX_LENGTH, "right", 8)
    sort(report)
    return report.findings


def long_text(record: dict, number: int) -> dict:
    """The record with a prompt that is long enough to be compared with others, and like none of them."""
    words = [f"{word}{number}" for word in LONG.split()]
    return {**record, "instruction": f"{record['instruction']} {' '.join(words)}"}


def plant(records: list[dict], rng: random.Random) -> tuple[list[str], list[str], dict[str, set[int]]]:
    """-> the training lines, the held-out lines, and for each kind the line numbers of its faults."""
    records = list(records)
    planted: dict[str, set[int]] = {}
    taken = iter(rng.sample(range(len(records)), EACH * (len(FAULTS) + 2 * len(COPIES))))
    lines: dict[int, str] = {}
    held_out: list[str] = []
    for kind, faults in FAULTS.items():
        chosen = [next(taken) for _ in range(EACH)]
        for number, at in enumerate(chosen):
            lines[at] = faults[number % len(faults)](records[at])
        planted[kind] = {at + 1 for at in chosen}
    for kind in COPIES:
        planted[kind] = set()
        for number in range(EACH):
            first, second = sorted((next(taken), next(taken)))
            original = long_text(records[first], 1000 * COPIES.index(kind) + number)
            copy = {
                "duplicate": {**original, "output": original["output"].upper()},
                "near-duplicate": {**original, "instruction": f"{original['instruction']} Indeed?"},
                "conflict": {**original, "output": f"Quite another answer, number {number}, to this very question."},
                "leak": {**original, "output": f"Answer {number} of the validation data."},
                "near-leak": {**original, "instruction": f"{original['instruction']} Today?"},
            }[kind]
            lines[first] = json.dumps(original)
            if kind in ("leak", "near-leak"):
                held_out.append(json.dumps(copy))
                planted[kind].add(first + 1)
            else:
                lines[second] = json.dumps(copy)
                planted[kind].add(second + 1)
    planted["too-long"] |= planted["length"]
    return [lines.get(at, json.dumps(record)) for at, record in enumerate(records)], held_out, planted


def measure_planted(folder: Path, data: Path) -> dict:
    """For each kind {"planted", "found", "reported", "others"}: how many were planted, how many of them were found, how
    many findings of the kind there are in all, and which lines were not planted."""
    records = [{**record, "id": number} for number, record in enumerate(real.read_records(data))]
    before = {finding.number for finding in find_all(folder, [json.dumps(record) for record in records], [], {})}
    clean = [record for number, record in enumerate(records) if number not in before]
    if left := find_all(folder, [json.dumps(record) for record in clean], [], {}):
        raise UserError(f"{len(left)} findings are left in the cleaned data, the first: {left[0]}", 1)
    train, held_out, planted = plant(clean, random.Random(0))
    found: dict[str, set[int]] = {kind: set() for kind in planted}
    for finding in find_all(folder, train, held_out, {}):
        if finding.file.endswith("train.jsonl"):
            found.setdefault(finding.kind, set()).add(finding.line)
    if "key" in planted:  # named once, with the number of the records that have it
        found["key"] = planted["key"] if found["key"] == {min(planted["key"])} else set()
    return {
        kind: {
            "planted": len(planted.get(kind, ())),
            "found": len(lines & planted.get(kind, set())),
            "reported": len(lines),
            "others": sorted(lines - planted.get(kind, set())),
        }
        for kind, lines in found.items()
    }


def measure_sets(options) -> dict:
    """What is found in data as it is: {set: {"records", "counts", "sample": [kind, place, message]}}."""
    from gptft.curation.findings import count_kinds
    from gptft.curation.lint import lint, measure_words, sort
    from gptft.data.sources import find

    found = {}
    for name, (file, fields) in SETS.items():
        word = file if file.startswith("embedded:") else str(options.shared / file)
        report, _ = lint({"data": find([word])}, fields)
        measure_words(report)
        sort(report)
        found[name] = {"records": report.records, "counts": count_kinds(report.findings)}
    return found


def measure_time(folder: Path, options, count: int) -> dict:
    """Seconds for many records, everything looked for."""
    from gptft.curation.lint import lint

    records = real.read_records(options.shared / "benchmarks/gsm8k_train.jsonl")
    with open(folder / "many.jsonl", "w", encoding="utf-8") as file:
        for number in range(count):
            record = records[number % len(records)]
            file.write(json.dumps({**record, "question": f"{record['question']} ({number})"}) + "\n")
    began = time.perf_counter()
    report, _ = lint({"data": [folder / "many.jsonl"]})
    return {"records": count, "seconds": time.perf_counter() - began, "findings": len(report.findings)}


def main(argv: list[str]) -> None:
    options = common.parser("lint", __doc__, rounds=3).parse_args(argv)
    common.need("datasketch", "ftfy")
    data = common.instructions(options)
    os.environ.update(common.environment(options))
    rounds, count = (1, 2000) if options.quick else (options.rounds, MANY)
    settings = {"each": EACH, "rounds": rounds, "quick": options.quick}
    result = common.header("lint", options, settings, ["datasketch", "ftfy"])
    with common.temporary() as folder:
        result["planted"] = measure_planted(Path(folder), data)
        result["sets"] = measure_sets(options)
        result["rounds"] = [measure_time(Path(folder), options, count) for _ in range(rounds)]
    result["summary"] = {"seconds": common.spread([once["seconds"] for once in result["rounds"]]), "records": count}
    results.save(result, common.results_folder(options))


def planted_table(result: dict) -> str:
    """Recall and precision by kind."""
    rows = []
    for kind, counts in sorted(result["planted"].items()):
        if not counts["planted"]:
            rows.append([kind, "0", "", f"{counts['reported']} reported"])
            continue
        recall = f"{counts['found'] / counts['planted']:.0%}"
        others = len(counts["others"])
        precision = f"{counts['found'] / (counts['found'] + others):.0%}" if counts["found"] else "0%"
        rows.append([kind, str(counts["planted"]), recall, precision])
    return results.markdown(["kind", "planted", "recall", "precision"], rows)


def sets_table(result: dict) -> str:
    """What is in real data, as it is."""
    rows = []
    for name, found in result["sets"].items():
        kinds = ", ".join(f"{count:,} {kind}" for kind, count in found["counts"].items()) or "nothing"
        rows.append([name, f"{found['records']:,}", kinds])
    return results.markdown(["set", "records", "found"], rows)


def describe_time(result: dict) -> str:
    seconds = result["summary"]["seconds"]
    return (
        f"{result['summary']['records']:,} records in {results.shown(seconds, 1)} s "
        f"({results.verdict(seconds['median'], LIMIT, ' s')})"
    )


def table(result: dict) -> str:
    return "\n\n".join([planted_table(result), sets_table(result), describe_time(result) + "."])
