"""How gptft grows: seconds a step by the length of rows and the size of batches, and memory by the number of records.

A model of 10 million random parameters, the embedded vocabulary, rotary positions, fp32, gptft's own loop. Rows of 64
to 4,096 random tokens in batches of 1 to 32, at most 16,384 tokens a step, every token a target. The time is taken for

    seconds = a + b * tokens + c * the sum of the squares of the rows' lengths

by least squares of the relative errors, with no term below 0: what a step costs whatever is in it, what each token
costs, and what the tokens of a row cost each other in attention. Where the errors are small, the time grows no faster
than it must.

Then 1,000 to 1,000,000 short records: memory of a fresh process that finds them tokenised in the cache and takes 20
steps.
"""

from __future__ import annotations

import itertools
import json
import statistics
import time
from pathlib import Path

from benchmarks import common, results
from gptft.errors import UserError

LENGTHS, BATCHES, MOST = (64, 256, 1024, 4096), (1, 2, 4, 8, 16, 32), 16_384
RECORDS, RECORD_STEPS, RECORD_BATCH = (1000, 10_000, 100_000, 1_000_000), 20, 8
WARM_STEPS, STEPS = 1, 3
SHAPE = {"n_layer": 8, "n_head": 8, "n_embd": 320, "position": "rotary"}
SMALL = {"n_layer": 2, "n_head": 2, "n_embd": 32, "position": "rotary"}  # of a quick run
FLAT = 1.5  # times the peak with the fewest records, with the most: some numbers of each are kept, none of its tokens
NAMES = ("a", "b", "c")


# the other side: each of these runs in a fresh process


def work(task: dict) -> dict:
    """In a fresh process."""
    return {"steps": time_steps, "tokenise": tokenise, "records": hold_records}[task["do"]](task)


def model_of(task: dict):
    """The model, of random weights that are always the same."""
    from gptft.architecture import GPTConfig
    from gptft.model import GPT
    from gptft.tokenizer import embedded

    return GPT.create(GPTConfig(embedded().n_vocab, max(LENGTHS), **task["shape"]), seed=0)


class RandomRows:
    """As many rows of random tokens as are asked for, as gptft's loop takes a split."""

    def __init__(self, count: int, length: int, n_vocab: int) -> None:
        import numpy as np

        from gptft.data.examples import Example

        # a row of `length` inputs and as many targets
        ids = np.random.default_rng(0).integers(n_vocab, size=(count, length + 1))
        self.examples = [Example(row, [(0, length + 1)], ("", number)) for number, row in enumerate(ids, 1)]
        self.lengths = np.full(count, length + 1)

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, i: int):
        return self.examples[i]

    def part(self, number: int, should_stop=None) -> RandomRows:
        return self


def train_on(model, rows, batch_size: int, steps: int):
    """gptft's loop in the ways that a run would choose -> its steps."""
    from benchmarks.training import ready
    from gptft.tokenizer import embedded

    settings = {"precision": "fp32", "batch_size": batch_size, "max_steps": steps, "mask_prompt": False}
    return ready(model, embedded(), settings).steps(rows)


def time_steps(task: dict) -> dict:
    """Seconds a step of rows of one length, by batch size: the median of some steps; the peak is that of all."""
    length, found = task["length"], {}
    model = model_of(task)
    parameters = model.n_parameters()
    for batch in task["batches"]:
        rows = RandomRows(batch * (WARM_STEPS + task["steps"]), length, model.config.vocab_size)
        steps = train_on(model, rows, batch, WARM_STEPS + task["steps"])
        seconds = [event.iter_time for event in steps][WARM_STEPS:]
        found[str(batch)] = statistics.median(seconds)
    largest = found[str(task["batches"][-1])]
    return {
        "seconds": found,
        "seconds_a_step": largest,
        "peak_bytes": common.peak_memory(),
        "parameters": parameters,
    }


def tokenise(task: dict) -> dict:
    """Make the records and put them into the cache."""
    with open(task["data"], "w", encoding="utf-8") as file:
        for n in range(task["count"]):
            record = {"question": f"What is {n} plus {n % 97}?", "answer": f"It is {n + n % 97}."}
            file.write(json.dumps(record) + "\n")
    dataset = load(task)
    return {"tokens": dataset.ledger["tokens_read"]}


def load(task: dict):
    """The dataset of the records."""
    from gptft.data.examples import Recipe, load_dataset
    from gptft.prompts import TEMPLATES
    from gptft.tokenizer import embedded

    return load_dataset([Path(task["data"])], embedded(), Recipe(TEMPLATES["qa"], 1024))


def hold_records(task: dict) -> dict:
    """Memory while the records are loaded from the cache, split and trained on."""
    import gptft.finetuning  # noqa: F401 - everything that a run imports
    from gptft.data.examples import split

    model, imported = model_of(task), common.resident_memory()
    began = time.perf_counter()
    train_set, _, _ = split(load(task), 0.0, 0.1, seed=123)
    loaded, seconds = common.resident_memory(), time.perf_counter() - began
    for _ in train_on(model, train_set, RECORD_BATCH, task["steps"]):
        pass
    return {
        "imported_bytes": imported,
        "loaded_bytes": loaded,
        "resident_bytes": common.resident_memory(),
        "peak_bytes": common.peak_memory(),
        "load_seconds": seconds,
    }


# this side


def main(argv: list[str]) -> None:
    parser = common.parser("growth", __doc__, rounds=5)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"measured of each shape and round [{STEPS}]")
    parser.add_argument("--most", type=int, default=RECORDS[-1], help=f"records at most [{RECORDS[-1]}]")
    options = parser.parse_args(argv)
    common.need("torch")
    lengths, batches, most, rounds = LENGTHS, BATCHES, MOST, options.rounds
    counts = [count for count in RECORDS if count <= options.most]
    shape, steps, record_steps = SHAPE, options.steps, RECORD_STEPS
    if options.quick:
        lengths, batches, most, counts, rounds = (16, 32, 64), (1, 2, 4), 128, [100, 1000], min(rounds, 2)
        shape, steps, record_steps = SMALL, 2, 2
    if min(steps, rounds) < 1 or len(counts) < 2:
        raise UserError(f"--steps and --rounds must be at least 1, --most at least {RECORDS[1]}")
    fitting = {length: [batch for batch in batches if batch * length <= most] for length in lengths}
    settings = {"shape": shape, "steps": steps, "record_steps": record_steps, "rounds": rounds, "quick": options.quick}
    result = common.header("growth", options, settings, ["torch", "numpy"])
    with common.temporary() as folder:
        env = common.environment(options) | {"GPTFT_CACHE": f"{folder}/cache"}

        def measure(name: str, _: int) -> dict:
            length = int(name)
            task = {"do": "steps", "shape": shape, "length": length, "batches": fitting[length], "steps": steps}
            return common.call("growth", task, env)

        result["rounds"] = common.interleave([*map(str, lengths)], rounds, measure, "seconds_a_step")
        result["records"] = {}
        for count in counts:
            task = {"data": f"{folder}/{count}.jsonl", "count": count, "shape": shape, "steps": record_steps}
            told = common.call("growth", {**task, "do": "tokenise"}, env)
            result["records"][str(count)] = told | common.call("growth", {**task, "do": "records"}, env)
            print(f"{count} records: {json.dumps(result['records'][str(count)])}", flush=True)
    settings["parameters"] = result["rounds"][0][str(lengths[0])]["parameters"]
    result["summary"] = summarise(result)
    folder = common.results_folder(options)
    if folder is not None:
        draw(result, results.DOCS if folder.resolve() == results.FOLDER else folder)
    results.save(result, folder)


def summarise(result: dict) -> dict:
    """The seconds of each shape, over the rounds, the three terms, and bytes a record."""
    cells = []
    for length, first in result["rounds"][0].items():
        for batch in first["seconds"]:
            seconds = common.spread([once[length]["seconds"][batch] for once in result["rounds"]])
            cells.append({"length": int(length), "batch": int(batch), "seconds": seconds})
    shapes = [(cell["length"], cell["batch"]) for cell in cells]
    measured = [cell["seconds"]["median"] for cell in cells]
    terms = fit(shapes, measured)
    for cell, shape in zip(cells, shapes, strict=True):
        cell["fitted"] = sum(x * y for x, y in zip(terms, parts_of(*shape), strict=True))
    errors = [cell["fitted"] / seconds - 1 for cell, seconds in zip(cells, measured, strict=True)]
    (fewest, least), *_, (most, largest) = result["records"].items()
    grown = largest["peak_bytes"] - least["peak_bytes"]
    return {
        "cells": cells,
        "terms": dict(zip(NAMES, terms, strict=True)),
        "worst_error": max(errors, key=abs),
        "median_error": statistics.median(map(abs, errors)),
        "peak_bytes": common.spreads(result["rounds"], "peak_bytes"),
        "bytes_a_record": grown / (int(most) - int(fewest)),
        "times_the_peak": largest["peak_bytes"] / least["peak_bytes"],
    }


def parts_of(length: int, batch: int) -> tuple[float, float, float]:
    """What a, b and c are multiplied with: 1, tokens, the sum of the squares of the lengths."""
    return 1.0, float(batch * length), float(batch * length**2)


def fit(shapes: list[tuple[int, int]], seconds: list[float]) -> list[float]:
    """a, b and c, none negative, so that the sum of the squares of the relative errors is least.

    Of three terms there are seven choices of those that are not 0: the best of them that has no negative one is the
    answer, for where a bound holds one back, it lies at the bound.
    """
    import numpy as np

    parts = np.array([parts_of(*shape) for shape in shapes]) / np.array(seconds)[:, None]  # relative: the goal is 1
    best, least = [0.0, 0.0, 0.0], float("inf")
    for count in (1, 2, 3):
        for some in itertools.combinations(range(3), count):
            columns = parts[:, some]
            scale = columns.max(0)  # numbers of like size: the squares are a thousand million times the ones
            found = np.linalg.lstsq(columns / scale, np.ones(len(columns)), rcond=None)[0] / scale
            error = float(((columns @ found - 1) ** 2).sum())
            if (found >= 0).all() and error < least:
                least = error
                best = [float(found[some.index(n)]) if n in some else 0.0 for n in range(3)]
    return best


def draw(result: dict, folder: Path) -> None:
    """Write growth.svg: seconds a step over its tokens, a line a length."""
    from gptft.files import atomic_write
    from gptft.report.svg import Line, line_chart

    lengths = list(dict.fromkeys(cell["length"] for cell in result["summary"]["cells"]))
    lines = []
    for number, length in enumerate(lengths):
        cells = [cell for cell in result["summary"]["cells"] if cell["length"] == length]
        points = [(cell["length"] * cell["batch"], cell["seconds"]["median"]) for cell in cells]
        lines.append(Line(f"rows of {length:,}", points, number, dots=True))
    figure = line_chart("growth", "Seconds a step", lines, "tokens a step", "seconds a step")
    # alone, without a page: its own style, and the legend as text below
    colours = ("#0072b2", "#c44e00", "#00795a", "#a6478a")
    style = "text{font:13px system-ui,sans-serif}.axis{fill:none;stroke:#777}.grid{fill:none;stroke:#ddd}"
    style += ".line{fill:none;stroke-width:2}" + "".join(
        f".look{n}{{stroke:{colour}}}circle.look{n},text.look{n}{{fill:{colour};stroke:none}}"
        for n, colour in enumerate(colours)
    )
    legend = "".join(
        f'<text class="look{n}" x="{70 + 100 * n}" y="290">{line.name}</text>' for n, line in enumerate(lines)
    )
    chart = str(next(child for child in figure.children if child.name == "svg"))
    _, _, inside = chart.partition(">")
    head = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 480 300" role="img">'
    back = '<rect width="480" height="300" fill="#fff"/>'
    with atomic_write(folder / "growth.svg") as file:
        file.write(f"{head}<style>{style}</style>{back}{inside.removesuffix('</svg>')}{legend}</svg>\n")


def table(result: dict) -> str:
    """Seconds a step by length and batch, the three terms, and memory by records."""
    summary, settings = result["summary"], result["settings"]
    batches = sorted({cell["batch"] for cell in summary["cells"]})
    rows = []
    for length in dict.fromkeys(cell["length"] for cell in summary["cells"]):
        of_batch = {cell["batch"]: cell for cell in summary["cells"] if cell["length"] == length}
        cells = [results.shown(of_batch[batch]["seconds"], 3) if batch in of_batch else "" for batch in batches]
        rows.append([f"{length:,}", *cells, f"{summary['peak_bytes'][str(length)]['median'] / 1e9:.2f}"])
    head = ["tokens a row", *(f"s a step, batch {batch}" for batch in batches), "peak memory of all, GB"]
    records = [
        [
            f"{int(count):,}",
            *(f"{found[key] / 1e6:.0f}" for key in ("imported_bytes", "loaded_bytes", "resident_bytes", "peak_bytes")),
            f"{found['load_seconds']:.2f}",
        ]
        for count, found in result["records"].items()
    ]
    shape = settings["shape"]
    return "\n\n".join(
        [
            f"{settings['parameters'] / 1e6:.1f} million parameters, {shape['n_layer']} layers of {shape['n_embd']}, "
            f"fp32; {settings['steps']} steps of each shape a round.",
            results.markdown(head, rows),
            describe_terms(summary),
            "![seconds a step over its tokens](../docs/growth.svg)",
            results.markdown(
                [
                    "records",
                    "after imports, MB",
                    "loaded and split",
                    f"after {settings['record_steps']} steps",
                    "peak",
                    "loading, s",
                ],
                records,
            ),
            describe_records(summary),
        ]
    )


def describe_terms(summary: dict) -> str:
    """The three terms, and how far they are off."""
    a, b, c = (summary["terms"][name] for name in NAMES)
    return (
        f"seconds = {a:.2e} + {b:.2e} * tokens + {c:.2e} * the sum of the squares of the lengths: off by at most "
        f"{abs(summary['worst_error']):.0%} of what was measured, in the median by {summary['median_error']:.0%}. "
        "No term may be negative."
    )


def describe_records(summary: dict) -> str:
    """What each further record takes."""
    return (
        f"{summary['bytes_a_record']:.0f} bytes at the peak for each further record, whose tokens lie in a memory map; "
        f"with the most records the peak is {summary['times_the_peak']:.2f} times that with the fewest, "
        f"{results.verdict(summary['times_the_peak'], FLAT, 'x')}."
    )


if __name__ == "__main__":
    common.answer(work)
