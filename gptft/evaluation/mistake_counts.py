"""Mistakes of all answers counted by kind, before and after: what training mended, and what it brought."""

from __future__ import annotations

from collections.abc import Sequence

from gptft.evaluation.compare import SIDES
from gptft.evaluation.mistakes import KINDS, Answer, asked_texts, find_mistakes
from gptft.evaluation.responses import prompt_and_expected
from gptft.evaluation.spelling import Spelling
from gptft.tokenizer import Tokenizer

EXAMPLES = 3  # of a kind


def note_mistakes(rows: Sequence[dict], tokenizer: Tokenizer, fields: dict, sides: Sequence[str] = SIDES) -> dict:
    """Write into every row that is scored what is wrong with each side's answer, `mistakes: {side: [kinds]}` -> the
    counts, as `count_mistakes` has them. The words of all prompts and expected responses count as known."""
    asked = [asked_texts(prompt_and_expected(row["record"], fields)[0]) for row in rows]
    texts = [text for row, prompt in zip(rows, asked, strict=True) for text in (*prompt, row["expected"])]
    spelling = Spelling(tokenizer, texts)
    for row, prompt in zip(rows, asked, strict=True):
        if "left_out" not in row:
            finished = row.get("finished", {})
            row["mistakes"] = {
                side: find_mistakes(Answer(prompt, row["expected"], row[side], finished.get(side), spelling))
                for side in sides
            }
    return count_mistakes(rows, sides)


def count_mistakes(rows: Sequence[dict], sides: Sequence[str] = SIDES) -> dict:
    """{kind: its counts}, every kind: `n`, the answers of a side that were looked at; under each side's name how many
    have the mistake; of two sides how many the second has `mended` and how many are `new` in it; and `examples`: the
    lines of responses.jsonl, from 1, of the first that have it, on the last side where there is one."""
    counts = {}
    looked_at = [(line, row["mistakes"]) for line, row in enumerate(rows, 1) if "mistakes" in row]
    for name in KINDS:
        having = {side: {line for line, found in looked_at if name in found[side]} for side in sides}
        first, last = having[sides[0]], having[sides[-1]]
        counts[name] = {"n": len(looked_at)} | {side: len(lines) for side, lines in having.items()}
        if len(sides) == 2:
            counts[name] |= {"mended": len(first - last), "new": len(last - first)}
        counts[name]["examples"] = sorted(last or first)[:EXAMPLES]
    return counts
