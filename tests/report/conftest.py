"""Real runs, small ones, for what is made of a run's folder."""

import json

import pytest

from gptft.finetuning import finetune

QUICK = {"init": "tiny", "batch_size": 4, "precision": "fp32", "threads": 1, "val_fraction": 0.2, "max_new_tokens": 8}
HOSTILE = [
    "<script>document.title = 'owned'</script>",
    '"><img src=x onerror="document.title=1">',
    "</style><script>document.title = 'owned'</script>",
    "</title></svg></td></table></main><iframe src=javascript:alert(1)></iframe>",
    "javascript:document.title='owned'",
    "a\x00b \x1b[31mred \u202egnirts\u2066 \x85 \u2028",
    "{display:none} * { background: url(https://example.com/x) }",
    "<!-- <![CDATA[ &lt;script&gt; &#60;script&#62; -->",
]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """The folder of a finished run, with families, mistakes and what else a page can show. Tests do not change it."""
    folder = tmp_path_factory.mktemp("finished")
    records = [
        {"question": f"What comes after {i}?", "answer": f"It is {i + 1}.", "family": "ab"[i % 2]} for i in range(60)
    ]
    data = {
        "data": write(folder / "train.jsonl", records[:40]),
        "test_data": write(folder / "test.jsonl", records[40:]),
    }
    start = finetune(**QUICK, data=data["data"], out_dir=folder / "start", max_steps=1, test_samples=0)
    settings = {**QUICK, **data, "init": str(start.path / "last")}
    run = finetune(**settings, out_dir=folder / "run", max_steps=16, eval_every=4, lr=3e-3)
    plant(run.path)
    return run.path


@pytest.fixture(scope="session")
def hostile(tmp_path_factory):
    """The folder of a run on records, keys, families and file names that would be markup or script."""
    folder = tmp_path_factory.mktemp("hostile")
    records = [
        {"question": f"{i}: {text}", "answer": text, "family": text, f"key{text}": 1}
        for i in range(4)
        for text in HOSTILE
    ]
    records[-1]["answer"] += " half \ud83d"
    name = "<img src=x onerror=alert(1)>.jsonl"
    data = {"data": write(folder / name, records), "test_data": write(folder / f"test{name}", records[:16])}
    run = finetune(**QUICK, **data, out_dir=folder / "<script>alert(1)<\u2215script>", max_steps=2)
    plant(run.path, HOSTILE)
    rows = [json.loads(line) for line in (run.path / "responses.jsonl").read_text(encoding="utf-8").split("\n") if line]
    for row, text in zip(rows, 2 * HOSTILE, strict=True):
        row |= {"after": text, "mistakes": {"before": [], "after": [text]}}
    write(run.path / "responses.jsonl", rows)
    return run.path


def plant(folder, names=("too_long", "repetitive")):
    """Put mistakes into a run's files, as the evaluation keeps them."""
    rows = [json.loads(line) for line in (folder / "responses.jsonl").read_text(encoding="utf-8").split("\n") if line]
    for number, row in enumerate(rows):
        row["mistakes"] = {"before": [names[0]], "after": [names[1]] if number % 3 == 0 else []}
    write(folder / "responses.jsonl", rows)
    path = folder / "evaluation.json"
    evaluation = json.loads(path.read_text(encoding="utf-8"))
    counts = {"before": len(rows), "after": 3, "mended": len(rows) - 3, "new": 0, "examples": [1, 4]}
    evaluation["mistakes"] = dict.fromkeys(names, counts)
    path.write_text(json.dumps(evaluation), encoding="utf-8")
