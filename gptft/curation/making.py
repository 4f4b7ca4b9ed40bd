"""Making records with a model: questions and answers from documents, new instructions from examples.

Every record that is made, and every one that is left out, is written at once, with where it is from and the prompts
that made it, so that an interrupted run goes on where it was: nothing is lost, and nothing is made twice.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from gptft.curation.asking import Prompts
from gptft.curation.checks import look_at, normalise
from gptft.curation.findings import KINDS, LEAVE_OUT
from gptft.decoding import Sampling
from gptft.errors import UserError
from gptft.files import append_json_line, atomic_write, read_appended
from gptft.generation import prompt_ids, respond
from gptft.loading import load
from gptft.text.endpoint import Answer, Refused
from gptft.text.subsequence import longest_common

WORDS = 150  # of a passage, at most, unless a paragraph is longer
LEAST = 12  # words that a passage must have to be asked about
SIMILAR = 0.7  # of two instructions, from which the later is left out (Self-Instruct, arXiv 2212.10560)
ANSWER_TOKENS = 200
QUESTION_TOKENS = 60

INSTRUCTION = (
    "Here are instructions that somebody gave an assistant:\n\n{examples}\n\nWrite another instruction of this kind, "
    "on another subject. Write the instruction alone."
)


class Model(Protocol):
    """Whatever answers: an endpoint, or a model that is loaded."""

    name: str

    def answer(self, messages: list[dict], max_tokens: int, temperature: float = 0.0, seed: int = 0) -> Answer: ...


class Local:
    """A model that `load` opens, asked in its own template; one without a template is given the text as it is."""

    def __init__(self, name: str, flag: str = "--model", device="cpu") -> None:
        self.name = name
        self.model, self.tokenizer = load(name, device)
        if self.tokenizer is None:
            raise UserError(f"{flag} {name} has no tokenizer")

    def answer(self, messages: list[dict], max_tokens: int, temperature: float = 0.0, seed: int = 0) -> Answer:
        """The answer to a conversation. Raises Refused for one that is too long."""
        raw = self.tokenizer.template is None
        prompt = messages[-1]["content"] if raw else messages
        length = len(prompt_ids(self.tokenizer, prompt, raw))
        if length + max_tokens > self.model.config.block_size:
            raise Refused(f"its prompt has {length} tokens, of {self.model.config.block_size} with the answer")
        sampling = Sampling(temperature, seed=seed)
        (response,) = respond(self.model, self.tokenizer, [prompt], max_tokens, raw, sampling=sampling)
        return Answer(*response)


class Job(NamedTuple):
    """One record to make: its key, what it is made from, and the number of the try."""

    key: str
    source: dict
    text: str
    number: int


def passages(path: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of the passages of a document: paragraphs, joined up to WORDS words; a heading goes with what
    follows it. Raises UserError where the file is no UTF-8."""
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8") from None
    begin, kept = 0, []
    for number, line in enumerate([*lines, "# "], 1):
        heading = re.match(r"#{1,6} ", line)
        length = len(" ".join(kept).split())
        full = (length >= WORDS and not line.strip()) or length >= 3 * WORDS
        if (heading or full) and kept:
            text = "\n".join(kept).strip()
            if len(text.split()) >= LEAST:
                yield begin, text
            kept = []
        if line.strip() or kept:
            begin = number if not kept else begin
            kept.append(line)


def jobs_from_documents(paths: Sequence[Path], each: int) -> Iterator[Job]:
    """`each` records of every passage."""
    for path in paths:
        for line, text in passages(path):
            digest = hashlib.sha256(text.encode()).hexdigest()[:16]
            for number in range(each):
                yield Job(f"{digest}-{number}", {"file": str(path), "line": line}, text, number)


class Book:
    """The file of records and, beside it, that of what was left out: both grow line by line, and tell what is done."""

    def __init__(self, out: Path, settings: dict) -> None:
        self.out, self.left = out, out.with_name(f"{out.stem}.left-out.jsonl")
        self.about, self.settings = out.with_name(f"{out.stem}.made.json"), settings
        there = next((path for path in (out, self.left) if path.exists()), None)
        if there and not self.about.exists():
            raise UserError(f"--out {out}: {there} exists already: name another file")
        before = json.loads(self.about.read_text(encoding="utf-8")) if there else settings
        if other := [name for name in {**settings, **before} if before.get(name) != settings.get(name)]:
            raise UserError(f"--out {out} was made of other settings ({', '.join(other)}): name another file")
        out.parent.mkdir(parents=True, exist_ok=True)
        self.made, self.refused = read_appended(self.out), read_appended(self.left)
        self.done = {entry["key"] for entry in (*self.made, *self.refused)}

    def add(self, entry: dict, kept: bool) -> None:
        """Write an entry so that it stays, whatever happens next; with the first of all, what they are made of."""
        if not self.done:
            with atomic_write(self.about) as file:
                json.dump(self.settings, file, indent=1)
        append_json_line(self.out if kept else self.left, entry)
        (self.made if kept else self.refused).append(entry)
        self.done.add(entry["key"])


def make_from_documents(
    model: Model, jobs: Sequence[Job], book: Book, temperature: float, prompts: Prompts
) -> Iterator[dict]:
    """Make what is not made yet; -> each entry as it is written."""
    known = {normalise(entry["question"]) for entry in book.made}
    for job in jobs:
        if job.key in book.done:
            continue
        entry = {"question": "", "answer": "", "key": job.key, "source": job.source, "prompts": [], "model": model.name}
        try:
            why = _ask_about(model, job, entry, temperature if job.number else 0.0, known, prompts)
        except Refused as error:
            why = f"refused by the model: {error}"
        book.add(entry | ({"why": why} if why else {}), not why)
        known.add(normalise(entry["question"]))
        yield entry | {"why": why}


def _ask_about(model: Model, job: Job, entry: dict, warmth: float, known: set[str], prompts: Prompts) -> str:
    """Fill in question, answer and prompts; -> why the record is left out, "" where it is not."""
    file = Path(job.source["file"]).name
    entry["prompts"].append(prompts.ask(file, job.text))
    question = model.answer([{"role": "user", "content": entry["prompts"][0]}], QUESTION_TOKENS, warmth, job.number)
    entry["question"] = clean(question.text)
    entry["prompts"].append(prompts.answer_to(entry["question"], file, job.text))
    answer = model.answer([{"role": "user", "content": entry["prompts"][1]}], ANSWER_TOKENS, warmth, job.number)
    entry["answer"] = answer.text.strip()
    return refuse(entry["question"], entry["answer"], answer.finished and question.finished, known)


def make_from_seeds(
    model: Model, seeds: Sequence[str], count: int, book: Book, temperature: float, seed: int
) -> Iterator[dict]:
    """New instructions after three of those that are there, with their answers, until `count` are made; one that is
    like another is left out. Ends, too, where nine in ten of the last hundred were left out."""
    number, lately = len(book.done), []
    while len(book.made) < count and not (len(lately) >= 100 and sum(lately[-100:]) < 10):
        rng = random.Random(f"{seed} {number}")
        pool = [*seeds, *(entry["instruction"] for entry in book.made)]
        examples = "\n".join(f"- {' '.join(each.split())}" for each in rng.sample(pool, min(3, len(pool))))
        asked = INSTRUCTION.format(examples=examples)
        entry = {"instruction": "", "output": "", "key": str(number), "source": {"seeds": examples}}
        entry |= {"prompts": [asked], "model": model.name}
        try:
            why = _follow(model, entry, pool, temperature, seed + number)
        except Refused as error:
            why = f"refused by the model: {error}"
        book.add(entry | ({"why": why} if why else {}), not why)
        lately.append(not why)
        number += 1
        yield entry | {"why": why}


def _follow(model: Model, entry: dict, pool: Sequence[str], temperature: float, seed: int) -> str:
    """Fill in a new instruction and its output; -> why the record is left out, "" where it is not."""
    made = model.answer([{"role": "user", "content": entry["prompts"][0]}], QUESTION_TOKENS, temperature, seed)
    entry["instruction"] = clean(made.text)
    if like := most_similar(entry["instruction"], pool):
        return like
    entry["prompts"].append(entry["instruction"])
    answer = model.answer([{"role": "user", "content": entry["instruction"]}], ANSWER_TOKENS, 0.0, 0)
    entry["output"] = answer.text.strip()
    return refuse(entry["instruction"], entry["output"], answer.finished and made.finished, set())


def clean(text: str) -> str:
    """A question without what models like to put around it."""
    text = re.sub(r"^\W*(?:question|instruction)\s*:\s*", "", text.strip(), flags=re.IGNORECASE)
    return text.strip().strip('"').strip()


def refuse(asked: str, answer: str, finished: bool, known: set[str]) -> str:
    """Why a record is left out: by the linter's checks, or since the question is there already; "" for none."""
    if not asked or not answer.strip():
        return "empty"
    if normalise(asked) in known:
        return "duplicate: the question is there already"
    if not finished:
        return "cut: the model did not come to its end"
    for kind, message in look_at(asked, [answer.strip()], [asked, answer]):
        if KINDS[kind].fix == LEAVE_OUT:
            return f"{kind}: {message}"
    return ""


def most_similar(text: str, others: Sequence[str]) -> str:
    """A word on the first other text that is like this one, "" where none is: the longest common subsequence of words
    over the mean of the lengths is at least SIMILAR (ROUGE-L's F, Lin 2004)."""
    words = normalise(text).split()
    for other in others:
        theirs = normalise(other).split()
        if 2 * longest_common(words, theirs) >= SIMILAR * (len(words) + len(theirs)):
            return f"similar: to {other!r}"
    return ""
