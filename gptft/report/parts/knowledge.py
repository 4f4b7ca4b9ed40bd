"""What the model has lost of what it knew, and which training records it learned last."""

from __future__ import annotations

from gptft.report.html import details, element, table
from gptft.report.run_files import RunFiles
from gptft.run.tables import bounds, difference, number

KINDS = {"general": "general text", "own_answers": "its own answers of before"}
SHOWN = 40  # training records that are named
LONGEST = 300  # characters of a text
PASSES = 10  # that have a column: of more the first two and the last


def forgetting(run: RunFiles) -> list | None:
    """The perplexities before and after, the divergence, and the texts that it is made of."""
    found = run.evaluation.get("forgetting")
    if not found:
        return None
    rows = []
    for kind, name in KINDS.items():
        if kind in found:
            sides = [bounds(found[kind][side]["perplexity"], number) for side in ("before", "after")]
            change = difference(found[kind]["difference"]["loss"], number)
            rows.append([f"perplexity, {name}", f"{found[kind]['n']:,}", *sides, change])
    if "kl" in found:
        rows.append(["KL from what it was, nats a token", f"{found['kl']['n']:,}", "", bounds(found["kl"], number), ""])
    head = ["what it knew", "n", "before", "after", "difference in loss"]
    words = (
        "Nothing here is of the run's own data. The base chose its answers itself, so that any other model finds them "
        "less likely; how much is the question."
    )
    texts = [
        [
            KINDS.get(row["kind"], row["kind"]),
            row["text"] if len(row["text"]) <= LONGEST else f"{row['text'][:LONGEST]} ...",
            f"{row['before']:.3f}",
            f"{row['after']:.3f}",
        ]
        for row in sorted(run.forgetting, key=lambda row: row["before"] - row["after"])
    ]
    caption = "By how much each text has become less likely, the most first; all are in forgetting.jsonl"
    return [
        table("What was measured before the first step and after the last", head, rows, "figures"),
        element("p", words),
        details("The texts", table(caption, ["kind", "text", "loss before", "loss after"], texts)) if texts else None,
    ]


def stubborn(run: RunFiles) -> list | None:
    """The training records that were learned last, pass by pass."""
    rows = run.training_losses
    if min((len(row["losses"]) for row in rows), default=0) < 2:  # nothing tells a hard record from an early one
        return None
    passes = max(len(row["losses"]) for row in rows)
    numbers = list(range(passes)) if passes <= PASSES else [0, 1, *range(passes - PASSES + 2, passes)]
    named = []
    for row in rows[:SHOWN]:
        losses = [f"{loss:.3f}" for loss in row["losses"]]
        losses += [""] * (passes - len(losses))
        named.append([row["file"], row["line"], row["targets"], *(losses[n] for n in numbers)])
    head = ["file", "line", "targets", *(f"pass {n + 1}" for n in numbers)]
    part = f"The first {SHOWN} of {len(rows):,}" if len(rows) > SHOWN else f"All {len(rows):,}"
    caption = f"{part} by the mean loss after the first pass, nats a target; all are in training_losses.jsonl"
    words = (
        "A wrong answer contradicts what the others teach, and its loss stays high when theirs has fallen: are the "
        "responses of these records right?"
    )
    return [element("p", words), table(caption, head, named, first=False)]
