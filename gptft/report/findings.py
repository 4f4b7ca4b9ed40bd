"""What the linter found, as text and as a page."""

from __future__ import annotations

import html
import itertools

from gptft.curation.findings import KINDS, count_kinds
from gptft.curation.lint import Report

BAR = 30  # characters of the longest bar


def headline(report: Report) -> str:
    """One line: how many findings of which kinds in how many records."""
    counts = count_kinds(report.findings)
    what = ", ".join(f"{count:,} {kind}" for kind, count in counts.items())
    total = sum(counts.values())
    found = f"{total:,} finding{'s' * (total != 1)}: {what}" if total else "nothing found"
    return f"{report.records:,} record{'s' * (report.records != 1)}: {found}"


def as_text(report: Report, show: int = 3) -> str:
    """The whole report; of each kind the first `show` findings, 0: all."""
    lines = [headline(report)]
    for kind, group in itertools.groupby(report.findings, lambda finding: finding.kind):
        found = list(group)
        lines += ["", f"{kind} ({len(found):,}): {KINDS[kind].what}"]
        lines += [f"  {finding.place}: {finding.message}" for finding in found[: show or None]]
        if show and len(found) > show:
            lines.append(f"  ... and {len(found) - show:,} more (--show 0 lists all)")
    if report.lengths:
        lines += ["", *describe_lengths(report.lengths)]
    return "\n".join([*lines, *(f"note: {note}" for note in report.notes)])


def describe_lengths(lengths: dict) -> list[str]:
    """Histograms, truncation and padding."""
    lines = []
    for what in ("prompt", "response"):
        values = lengths[what]
        lines.append(f"{what}: median {values['median']:,} tokens, longest {values['longest']:,}")
        most = max((count for *_, count in values["bins"]), default=1)
        for low, high, count in values["bins"]:
            lines.append(f"  {low:>6,} - {high:>6,} {'#' * round(BAR * count / most):<{BAR}} {count:,}")
    share = lengths["targets"] / max(lengths["tokens"], 1)
    lines.append(f"{lengths['tokens']:,} tokens, {share:.0%} of them targets")
    for rule, counts in lengths["truncation"].items():
        lines.append(
            f"max_length {lengths['max_length']}, truncation {rule}: {counts['cut']:,} cut, {counts['dropped']:,} "
            f"dropped, {counts['tokens lost']:,} tokens lost"
        )
    padding = lengths["padding"]
    lines.append(
        f"padding at batch size {lengths['batch_size']}: {padding['length']:.1%} of the tokens with batches of like "
        f"length, {padding['random']:.1%} at random"
    )
    return lines


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>What is in the data</title>
<style>
body {{ font: 15px/1.6 system-ui, sans-serif; margin: 2em auto; max-width: 70em; padding: 0 1em; }}
table {{ border-collapse: collapse; width: 100%; }} td, th {{ text-align: left; padding: .2em .8em .2em 0; }}
td {{ border-top: 1px solid #ddd; vertical-align: top; }} td:first-child {{ white-space: nowrap; color: #555; }}
summary {{ cursor: pointer; font-weight: 600; margin-top: 1em; }} svg {{ display: block; margin: .5em 0 1em; }}
</style>
<h1>What is in the data</h1>
<p>{headline}</p>
<p>{files}</p>
{sections}
{lengths}
</html>
"""


def as_html(report: Report) -> str:
    """A page by itself, with every finding and the histograms."""
    sections = []
    for kind, group in itertools.groupby(report.findings, lambda finding: finding.kind):
        found = list(group)
        rows = "".join(
            f"<tr><td>{html.escape(each.place)}</td><td>{html.escape(each.message)}</td></tr>\n" for each in found
        )
        what = f"{kind} ({len(found):,}): {KINDS[kind].what}; under --fix such a record is {KINDS[kind].fix}"
        sections.append(f"<details open><summary>{html.escape(what)}</summary><table>\n{rows}</table></details>")
    lengths = ""
    if report.lengths:
        for what in ("prompt", "response"):
            lengths += f"<h2>{what}, tokens</h2>{_bars(report.lengths[what]['bins'])}"
        lines = [html.escape(line) for line in describe_lengths(report.lengths) if not line.startswith("  ")]
        lengths += f"<p>{'<br>'.join(lines)}</p>"
    return PAGE.format(
        headline=html.escape(headline(report)),
        files=html.escape(", ".join(report.files)),
        sections="\n".join(sections),
        lengths=lengths + "".join(f"<p>{html.escape(note)}</p>" for note in report.notes),
    )


def _bars(bins: list[list[int]]) -> str:
    """A histogram as SVG, a bar a bin with its range and count."""
    most = max((count for *_, count in bins), default=1)
    rows = []
    for row, (low, high, count) in enumerate(bins):
        y = 22 * row
        rows.append(
            f'<text x="130" y="{y + 15}" text-anchor="end">{low:,} - {high:,}</text>'
            f'<rect x="140" y="{y + 2}" width="{500 * count / most:.1f}" height="17" fill="#52b788"/>'
            f'<text x="{145 + 500 * count / most:.1f}" y="{y + 15}">{count:,}</text>'
        )
    return f'<svg width="720" height="{22 * len(bins)}" font-size="13" font-family="system-ui">{"".join(rows)}</svg>'
