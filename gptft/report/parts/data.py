"""What the run was trained on: the books of records and tokens, lengths, findings, and what was lost."""

from __future__ import annotations

from gptft.curation.findings import KINDS
from gptft.report.html import Element, details, element, table
from gptft.report.run_files import RunFiles

NAMES = {"data": "training files", "val_data": "validation files", "test_data": "test files"}
SPLITS = {"data": "training", "val_data": "validation", "test_data": "test"}
BOOKS = {
    "records_read": "records read",
    "records_kept": "records kept",
    "records_cut": "of them cut",
    "examples": "examples",
    "tokens_read": "tokens read",
    "tokens_user": "of them the user's",
    "tokens_template": "of them the template's",
    "tokens_repeated": "tokens that stand in two chunks",
    "targets": "tokens that are trained (targets)",
    "tokens_masked": "tokens that are read, not trained",
    "tokens_cut": "tokens cut",
    "tokens_dropped": "tokens dropped",
    "tokens_set_aside": "tokens set aside",
}
LOST = 50  # records that are named


def data(run: RunFiles) -> list | None:
    """The ledger of the summary, lengths and findings; None before the run's end, which writes it."""
    ledgers = run.summary.get("ledger")
    if not ledgers:
        return None
    head = ["", *(NAMES.get(name, name) for name in ledgers)]
    books = [
        [words, *(f"{ledger.get(key, 0):,}" for ledger in ledgers.values())]
        for key, words in BOOKS.items()
        if any(ledger.get(key) for ledger in ledgers.values())
    ]
    for what, words in (("records_dropped", "dropped"), ("unused_keys", "without the part")):
        keys = sorted({key for ledger in ledgers.values() for key in ledger.get(what, {})})
        label = "records dropped: {}" if words == "dropped" else "records with the key {}, which is not used"
        books += [
            [label.format(key), *(f"{ledger.get(what, {}).get(key, 0):,}" for ledger in ledgers.values())]
            for key in keys[:LOST]
        ]
        if len(keys) > LOST:
            books.append([f"(and {len(keys) - LOST:,} more such lines, in summary.json)", *[""] * len(ledgers)])
    return [
        element("p", describe_template(ledgers["data"].get("template"))),
        table("Records and tokens", head, books),
        splits(ledgers),
        [
            lengths(measured_of(name, ledger), ledger["lengths"])
            for name, ledger in ledgers.items()
            if "lengths" in ledger
        ],
        findings(ledgers["data"].get("findings")),
        lost(run.lost),
    ]


def describe_template(choice: dict | None) -> str | None:
    if not choice:
        return None
    keys = ", ".join(key if key == part else f"{key} (as {part})" for key, part in choice["keys"].items())
    return f"Prompt template: {choice['template']} ({choice['why']}). Keys of the records: {keys or 'unknown'}."


def splits(ledgers: dict) -> Element:
    """What each split has."""
    rows = []
    for ledger in ledgers.values():
        for part, books in ledger.get("splits", {}).items():
            numbers = (books["examples"], books["targets"] + books["tokens_masked"], books["targets"])
            rows.append([SPLITS.get(part, part), *(f"{number:,}" for number in numbers)])
    return table("The splits", ["split", "examples", "tokens", "of them targets"], rows)


def measured_of(name: str, ledger: dict) -> str:
    """Whose lengths they are: of a stream they are taken before the first step."""
    return ("the first shard of the " if ledger.get("shards", 1) > 1 else "") + NAMES.get(name, name)


def lengths(name: str, measured: dict) -> Element:
    """Histograms of prompts and responses, a bar a bin."""
    parts = []
    for what, found in measured.items():
        most = max((count for *_, count in found["bins"]), default=1)
        rows = [[f"{low:,} to {high:,}", f"{count:,}", bar(count / most)] for low, high, count in found["bins"]]
        caption = f"{what}: median {found['median']:,} tokens, longest {found['longest']:,}"
        parts.append(table(caption, ["tokens", "examples", ""], rows))
    return element("div", element("h3", f"Lengths, {name}"), element("div", parts, class_="beside"))


def bar(share: float) -> Element:
    """A bar beside its number, which says the same."""
    inside = element("rect", width=f"{100 * share:.1f}", height=10, class_="bar")
    return element("svg", inside, viewBox="0 0 100 10", width=100, height=10, aria_hidden="true")


def findings(found: dict | None) -> list | None:
    """What the linter saw at the start of the run."""
    if not found:
        return None
    where = f"{'the first ' * found['in_part']}{found['records']:,} records"
    if not found["kinds"]:
        return [element("h3", "Findings"), element("p", f"The linter found nothing in {where}.")]
    rows = [[kind, f"{count:,}", KINDS[kind].what if kind in KINDS else ""] for kind, count in found["kinds"].items()]
    shown = table(f"What the linter found in {where}", ["kind", "findings", "what it is"], rows)
    return [element("h3", "Findings"), shown, element("p", "python -m gptft lint names each with file and line.")]


def lost(entries: list[dict]) -> Element | None:
    """Records that were cut or dropped, by name."""
    if not entries:
        return None
    keys = ("split", "file", "line", "what", "why", "tokens")
    first = f"The first {LOST} of {len(entries):,}" if len(entries) > LOST else f"All {len(entries):,}"
    rows = [[entry.get(key, "") for key in keys] for entry in entries[:LOST]]
    caption = f"{first} records that were cut or dropped; all are in lost.jsonl"
    return details(f"Records cut or dropped ({len(entries):,})", table(caption, keys, rows, first=False))
