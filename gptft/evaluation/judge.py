"""A model that judges answers: a score from 0 to 100 for one, or which of two is better.

A judge is any model that `load` opens, or one at an endpoint. What it says counts where it says exactly what it was
asked for; everything else is unparsable, is counted, and is no score. Two answers are shown in both orders, and only a
verdict that both give is one: judges like what stands first, or last (Wang et al. 2023, arXiv 2305.17926).
"""

from __future__ import annotations

import hashlib
import json
import re
import textwrap
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from gptft.checkpoint import model_id
from gptft.curation.asking import fill, read_texts
from gptft.curation.making import Local, Model
from gptft.errors import UserError
from gptft.evaluation.metrics import answer_in
from gptft.files import append_json_line, read_appended
from gptft.generation import stop_ids
from gptft.text.conversation import messages_of
from gptft.text.endpoint import Failing, Refused

SHOWN = 60  # characters of a prompt at which a server fails
FIRST = b'{"key": "'  # of a file of verdicts
IN_A_ROW = 3  # conversations at which a server fails before the judging ends


class JudgePrompts(NamedTuple):
    """What asks for a score, and what asks which of two answers is better. `{prompt}` stands for what was asked,
    `{answer}`, or `{a}` and `{b}`, for the answers, `{expected}` for the expected response, and `{reference}` for that
    with a line before it; where none is expected, these two stand for nothing."""

    score: str
    pair: str


PROMPTS = JudgePrompts(
    "Somebody asked:\n\n{prompt}\n\n{reference}The answer was:\n\n{answer}\n\nHow good is the answer? Give it a score "
    "from 0, worthless, to 100, perfect. Reply with the number alone.",
    "Somebody asked:\n\n{prompt}\n\n{reference}Answer A:\n\n{a}\n\nAnswer B:\n\n{b}\n\nWhich answer is better? Reply "
    "with one word alone: A, B, or tie.",
)
REFERENCE = "A good answer would be:\n\n{expected}\n\n"
NEEDED = {"score": ("prompt", "answer"), "pair": ("prompt", "a", "b")}

SCORE = re.compile(r"(?P<label>score:)?\s*(?P<said>[0-9]{1,3}(?:\.[0-9]+)?)(?:\s*/\s*100)?\.?", re.IGNORECASE)
EMPHASIS = re.compile(r"(\*\*|\*|`)([^*`\n]+)\1(?!\w)")  # what stands between a pair of marks: 5* is not 5
VERDICT = re.compile(r"(?P<label>(?i:verdict:))?\s*(?:(?i:answer)\s+)?(?P<said>[AB]|(?i:(?:a\s+)?tie))\.?")


def read_judge_prompts(path: str) -> JudgePrompts:
    """The prompts in a .toml file with `score`, `pair` or both. Raises UserError."""
    return JudgePrompts(**read_texts(path, "--judge_prompt", NEEDED, PROMPTS._asdict())) if path else PROMPTS


def show_judge_prompts(prompts: JudgePrompts) -> str:
    """The prompts as --show_judge_prompt prints them."""
    return "\n\n".join(f"--- {name}\n{text}" for name, text in prompts._asdict().items())


class Asked(NamedTuple):
    """A prompt as a judge is shown it, and the expected response; "" where none is."""

    prompt: str
    expected: str = ""


def prompt_text(parts: dict) -> str:
    """A prompt's parts as one text: of a conversation each turn behind its role."""
    messages = messages_of(parts)
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message.get('content') or ''}" for message in messages)


class Verdicts:
    """The file of what judges said, a line a reply, each written as it comes; what stands there is not asked again. A
    reply belongs to a judge and the whole of its prompt, so that no other data or prompt can be taken for it."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = path
        if path and path.exists() and not FIRST.startswith(path.read_bytes()[: len(FIRST)]):
            raise UserError(f"--verdicts {path}: it holds something else: name another file")
        try:
            self.replies = {row["key"]: row for row in read_appended(path)} if path else {}
        except (KeyError, TypeError):
            raise UserError(f"--verdicts {path}: a line is no verdict: name another file") from None
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, row: dict) -> None:
        if self.path:
            append_json_line(self.path, row)
        self.replies[row["key"]] = row

    def hold(self, name: str) -> bool:
        """Whether a judge of this name has ever replied."""
        return any(row.get("judge") == name and "reply" in row for row in self.replies.values())


class Judge:
    """`identity`: what else than its name a verdict is kept under, for at a path there may be another model tomorrow.
    `counts`: what was `asked` of it in all, of that `unparsable`, `refused` and `failed`; of the `compared` pairs
    those that were `same` texts, and those whose verdict turned with the order (`position`)."""

    def __init__(
        self,
        model: Model,
        verdicts: Verdicts,
        prompts: JudgePrompts = PROMPTS,
        max_tokens: int = 16,
        identity: str = "",
    ) -> None:
        self.model, self.verdicts, self.prompts, self.max_tokens = model, verdicts, prompts, max_tokens
        self.identity = identity
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self.failing = 0  # conversations in a row

    @property
    def name(self) -> str:
        return self.model.name

    def score(self, asked: Asked, answer: str) -> float | None:
        """0 to 1; None where there is no score to be had. What was thought aloud is no part of an answer."""
        said = self._say(fill(self.prompts.score, answer=answer_in(answer), **fields(asked)), asked)
        return None if said is None else self._count(parse_score(said))

    def compare(self, asked: Asked, a: str, b: str) -> float | None:
        """1.0 where a is better, 0.0 where b is, 0.5 for a tie, which a verdict that turns with the order is, too; None
        where there is no verdict to be had."""
        self.counts["compared"] += 1
        a, b = answer_in(a), answer_in(b)
        if a == b:
            self.counts["same"] += 1
            return 0.5
        said = [self._say(fill(self.prompts.pair, a=x, b=y, **fields(asked)), asked) for x, y in ((a, b), (b, a))]
        first, second = (None if each is None else self._count(parse_verdict(each)) for each in said)
        if first is None or second is None:
            return None
        if first != 1 - second:
            self.counts["position"] += 1
            return 0.5
        return first

    def _count(self, parsed: float | None) -> float | None:
        self.counts["unparsable"] += parsed is None
        return parsed

    def _say(self, prompt: str, asked: Asked) -> str | None:
        """The reply to a prompt, of this run or an earlier one; None where the model refuses it, or its server fails.
        Of a refusal it is kept that it was one; what failed is asked again by the next run.

        Raises Failing where the server fails at IN_A_ROW conversations in a row."""
        name = f"{self.name} {self.identity}".strip()
        key = hashlib.sha256(json.dumps([name, self.max_tokens, prompt]).encode()).hexdigest()[:32]
        self.counts["asked"] += 1
        if key not in self.verdicts.replies:
            row = {"key": key, "judge": self.name, "prompt": prompt}
            try:
                answer = self.model.answer([{"role": "user", "content": prompt}], self.max_tokens)
                row |= {"reply": answer.text, "finished": answer.finished}
            except Refused as error:
                if not getattr(self.model, "answered", True):  # perhaps it refuses all, and the name is wrong
                    self.counts["refused"] += 1
                    return None
                row["refused"] = str(error)
            except Failing as error:
                self.failing += 1
                if self.failing == IN_A_ROW:
                    raise
                self.counts["failed"] += 1
                self.failures.append(f"{textwrap.shorten(asked.prompt, SHOWN)!r}: {error}")
                return None
            self.failing = 0
            self.verdicts.add(row)
        row = self.verdicts.replies[key]
        if "refused" in row:
            self.counts["refused"] += 1
            return None
        return row["reply"] if row["finished"] else ""  # a number that was cut off may have been another


def fields(asked: Asked) -> dict[str, str]:
    """What the fields of a judge's prompt stand for, but for the answers."""
    expected = answer_in(asked.expected)
    reference = fill(REFERENCE, expected=expected) if expected else ""
    return {"prompt": asked.prompt, "expected": expected, "reference": reference}


def parse_score(reply: str) -> float | None:
    """A reply that is a number from 0 to 100, as 0 to 1: the number alone, or behind `Score:` on the last line."""
    found = matched(SCORE, reply)
    return float(found) / 100 if found and float(found) <= 100 else None


def parse_verdict(reply: str) -> float | None:
    """1.0 for A, 0.0 for B, 0.5 for a tie: alone, or behind `Verdict:` on the last line; None for anything else."""
    found = matched(VERDICT, reply)
    return None if found is None else {"A": 1.0, "B": 0.0}.get(found, 0.5)


def matched(pattern: re.Pattern, reply: str) -> str | None:
    """What a reply says by a pattern; None where it is not exactly that. Emphasis, and what was thought aloud, is no
    part of it."""
    text = EMPHASIS.sub(r"\2", answer_in(reply)).strip()
    found = pattern.fullmatch(text)
    if not found and text:
        found = pattern.fullmatch(text.splitlines()[-1].strip())
        found = found if found and found["label"] else None
    return found["said"] if found else None


def open_judge(word: str, name: str, device, max_tokens: int, prompts: JudgePrompts, verdicts: Verdicts) -> Judge:
    """The judge behind a --judge word: a model of ours, or `name` at a URL. Raises UserError."""
    if word.startswith(("http://", "https://")):
        from gptft.text.endpoint import Endpoint

        if not name:
            raise UserError(f"--judge {word}: name its model there with --judge_model")
        model = Endpoint(word, name, flag="--judge", patience=IN_A_ROW)
        model.answered = verdicts.hold(model.name)
        return Judge(model, verdicts, prompts, max_tokens)
    model = Local(word, "--judge", device)
    return Judge(model, verdicts, prompts, max_tokens, identity_of(model))


def identity_of(model: Local) -> str:
    """What decides what a model of ours says: weights, architecture and vocabulary, and how it is asked and ended."""
    template = model.tokenizer.template
    asked = json.dumps([template.to_dict() if template else None, sorted(stop_ids(model.tokenizer))], sort_keys=True)
    return f"{model_id(model.model, model.tokenizer)} {hashlib.sha256(asked.encode()).hexdigest()[:16]}"
