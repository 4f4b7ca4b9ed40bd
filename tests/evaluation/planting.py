"""Answers with a mistake that is known, made by edits of a real model's answers: what the detector of mistakes is held
to. It imports nothing of the project, least of all the detector.

`plant(bases, seed)` gives `Planted` answers: the kind, the answer before the edit (`clean`), and in `also` the kinds
that the same edit may bring with it in truth (a wrong number is a near miss, too). The bases are records with the
answer of a real model; what is expected is the record's own response, or the real answer itself where the edit needs
an answer that is right.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

EACH = 30  # planted of a kind


@dataclass(frozen=True)
class Base:
    """A record of instructions with the answer of a model, and whether that came to its end."""

    number: int
    instruction: str
    input: str
    output: str
    answer: str
    finished: bool

    @property
    def asked(self) -> list[str]:
        return [text for text in (self.instruction, self.input) if text]


@dataclass(frozen=True)
class Planted:
    kind: str
    how: str
    base: Base
    expected: str
    clean: str
    text: str
    clean_finished: bool
    finished: bool
    also: frozenset[str] = field(default=frozenset())


class Material:
    """What edits draw from: the other records, and the words that somebody has written."""

    def __init__(self, records: Sequence[dict], foreign: Sequence[str]) -> None:
        self.records, self.foreign = records, foreign
        self.words = set(re.findall(r"[a-z]+", " ".join(map(str, records)).lower()))

    def sentence(self, rng: random.Random) -> str:
        """A response of another record, of some length."""
        while True:
            text = rng.choice(self.records)["output"].strip()
            if 60 < len(text) < 200 and "\n" not in text:
                return text


Edit = Callable[[Base, random.Random, Material], Iterator[Planted]]
EDITS: dict[str, list[tuple[Edit, frozenset[str]]]] = {}


def edit(kind: str, *also: str):
    """Register an edit; it yields its planted answer, or nothing for a base that does not suit it."""

    def register(function):
        EDITS.setdefault(kind, []).append((function, frozenset(also)))
        return function

    return register


def plant(bases: Sequence[Base], material: Material, seed: int, each: int = EACH) -> list[Planted]:
    """`each` answers of each kind, or as many as the bases give; its edits take turns, the bases go by the seed."""
    planted = []
    for kind, edits in EDITS.items():
        rng = random.Random(f"{kind} {seed}")
        made: list[Planted] = []
        for function, also in edits:
            order = rng.sample(list(bases), len(bases))
            found: list[Planted] = []
            for base in order:
                if len(found) == -(-each // len(edits)):
                    break
                for clean, text, settings in function(base, rng, material):
                    settings = {"expected": base.output, "clean_finished": base.finished, **settings}
                    settings = {"finished": settings["clean_finished"], **settings}
                    found.append(Planted(kind, function.__name__, base, clean=clean, text=text, also=also, **settings))
            made += found
        planted += made[:each]
    return planted


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def share_of(text: str, within: str) -> float:
    words, others = words_of(text), set(words_of(within))
    return sum(word in others for word in words) / max(len(words), 1)


# no stop


@edit("no_stop", "misspelt", "near_miss")
def cut_short(base, rng, material):
    words = base.answer.split(" ")
    if base.finished and len(words) > 5:
        yield base.answer, " ".join(words[: rng.randint(3, len(words) - 1)]), {"finished": False}


@edit("no_stop", "too_long", "echo", "repetitive", "wrong_number")
def goes_on_with_another_turn(base, rng, material):
    other = rng.choice(material.records)["instruction"]
    turn = rng.choice(
        ["\n\n### Instruction:\n{}", "\nUser: {}\nAssistant:", "\n\nQuestion: {}", "<|im_start|>user\n{}"]
    )
    if base.finished:
        yield base.answer, base.answer + turn.format(other), {}


# empty


@edit("empty", "no_stop")
def nothing(base, rng, material):
    yield base.answer, rng.choice(["", " ", "\n\n", ".", "...", '""', "\n\n---\n", "- "]), {}


# too long


@edit("too_long", "wrong_number", "repetitive", "wrong_language")
def goes_on(base, rng, material):
    text = base.answer
    while len(text) < 3 * len(base.output) + 150:
        text += " " + material.sentence(rng)
    yield base.answer, text, {}


@edit("too_long", "wrong_number", "wrong_format", "repetitive")
def explains_at_length(base, rng, material):
    if len(base.answer) < 80:
        more = [material.sentence(rng) for _ in range(rng.randint(2, 4))]
        text = base.answer + "\n\nHere is why:\n" + "\n".join(f"- {sentence}" for sentence in more)
        if len(text) > 3 * len(base.answer):
            yield base.answer, text, {"expected": base.answer}


# repetitive


@edit("repetitive", "too_long", "no_stop")
def says_a_sentence_again(base, rng, material):
    sentences = re.split(r"(?<=[.!?])\s+", base.answer) if base.answer.strip()[-1:] in ".!?" else []
    long = [sentence for sentence in sentences if len(sentence.split()) > 5 and sentence[-1] in ".!?"]
    if long:
        yield base.answer, f"{base.answer} {rng.choice(long)}", {}


@edit("repetitive", "too_long", "no_stop", "near_miss", "wrong_format")
def loops(base, rng, material):
    """As greedy decoding does: the last words come again and again."""
    words = base.answer.split()
    size = rng.randint(1, 8)
    if len(words) > size + 2 and all(words_of(word) for word in words[-size:]):
        yield base.answer, " ".join([*words, *words[-size:] * rng.randint(3, 6)]), {}


@edit("repetitive", "too_long", "near_miss")
def stutters(base, rng, material):
    words = base.answer.split()
    at = rng.randrange(len(words)) if words else 0
    if len(words) > 4 and words[at].isalpha():
        yield base.answer, " ".join([*words[:at], *[words[at]] * rng.randint(3, 5), *words[at + 1 :]]), {}


@edit("repetitive", "too_long")
def lists_the_same(base, rng, material):
    line = base.answer.split("\n")[0]
    if len(line.split()) > 4:
        yield base.answer, "\n".join(f"{n}. {line}" for n in range(1, rng.randint(3, 6))), {}


# echo


def asks_for_itself(base: Base) -> bool:
    """Whether the expected response has the prompt's words, as a text to be corrected has."""
    return share_of(base.output, " ".join(base.asked)) > 0.7


@edit("echo", "too_long", "near_miss", "wrong_number", "wrong_format")
def says_the_question_first(base, rng, material):
    if len(words_of(base.instruction)) > 5 and not asks_for_itself(base):
        yield base.answer, f"{base.instruction}{rng.choice([' ', chr(10)])}{base.answer}", {}


@edit("echo", "too_long", "near_miss", "wrong_number", "wrong_format")
def says_the_question_alone(base, rng, material):
    if len(words_of(base.instruction)) > 3 and not asks_for_itself(base):
        yield base.answer, base.instruction, {"finished": True}


@edit("echo", "too_long", "near_miss", "wrong_number", "wrong_format")
def gives_the_input_back(base, rng, material):
    if len(words_of(base.input)) > 3 and not asks_for_itself(base):
        yield base.answer, rng.choice(["{}", '"{}"', "{} "]).format(base.input), {"finished": True}


# misspelt


def mistype(word: str, rng: random.Random, letters: str) -> str:
    at = rng.randrange(1, len(word) - 1)
    return rng.choice(
        [
            word[:at] + word[at + 1 :],
            word[:at] + word[at + 1] + word[at] + word[at + 2 :],
            word[:at] + rng.choice(letters) + word[at + 1 :],
            word[:at] + rng.choice(letters) + word[at:],
        ]
    )


@edit("misspelt", "near_miss")
def mistypes_a_word(base, rng, material):
    quoted = [found.span() for found in re.finditer(r"'.*?'(?!\w)|\".*?\"|\".*", base.answer)]
    places = [
        found
        for found in re.finditer(r"(?<![\w'-])[a-z]{6,}(?![\w'-])", base.answer)
        if not any(start <= found.start() < end for start, end in quoted)
    ]
    rng.shuffle(places)
    for place in places[:1]:
        word = place.group()
        for _ in range(20):
            wrong = mistype(word, rng, "abcdefghijklmnopqrstuvwxyz")
            if wrong != word and wrong not in material.words and word in material.words:
                yield base.answer, base.answer[: place.start()] + wrong + base.answer[place.end() :], {}
                return


# wrong format


@edit("wrong_format", "near_miss", "too_long")
def says_json_in_prose(base, rng, material):
    if base.finished:
        form = rng.choice([lambda text: {"answer": text}, lambda text: [text], lambda text: {"id": 1, "text": text}])
        wanted, clean = (json.dumps(form(text)) for text in (base.output, base.answer))
        text = base.answer if rng.random() < 0.5 else clean[:-1]  # the last bracket is missing
        yield clean, text, {"expected": wanted}


@edit("wrong_format", "near_miss", "too_long", "wrong_number")
def says_a_list_in_prose(base, rng, material):
    sentences = [part for part in re.split(r"[.!?,;]\s+", base.answer.strip(" .")) if part.strip()]
    if base.finished and len(sentences) > 1 and "\n" not in base.answer:
        mark = rng.choice(["- {1}", "* {1}", "{0}. {1}", "{0}) {1}"])
        clean = "\n".join(mark.format(n, sentence) for n, sentence in enumerate(sentences, 1))
        yield clean, base.answer, {"expected": clean}


@edit("wrong_format", "near_miss", "too_long", "wrong_number")
def says_a_number_in_prose(base, rng, material):
    if base.finished and not re.search(r"\d", base.answer) and len(base.answer.split()) > 3:
        number = str(rng.choice([rng.randint(2, 20), rng.randint(100, 9000), rng.randint(11, 99) / 4]))
        yield number, base.answer, {"expected": number}


@edit("wrong_format", "near_miss", "too_long", "wrong_number")
def says_neither_yes_nor_no(base, rng, material):
    if base.finished and len(base.answer.split()) > 4 and not re.match(r"(?i)\W*(yes|no|true|false)\b", base.answer):
        wanted = rng.choice(["Yes.", "No.", "yes", "no", "True", "False", "Yes, it is."])
        yield wanted, base.answer, {"expected": wanted}


@edit("wrong_format", "near_miss", "too_long", "wrong_number")
def says_code_in_prose(base, rng, material):
    if base.finished and len(base.answer.split()) > 4:
        code = rng.choice(
            ["def answer():\n    return {!r}", "for word in {!r}.split():\n    print(word)", "import sys\nprint({!r})"]
        )
        yield code.format(base.answer), base.answer, {"expected": code.format(base.answer)}


# wrong number


def other_number(figure: str, rng: random.Random, taken: set[str]) -> str:
    digits = re.sub(r"\D", "", figure)
    while True:
        wrong = rng.choice(
            [str(int(digits) + rng.randint(1, 9)), str(rng.randint(2, 10 ** len(digits) + 10)), digits + "0"]
        )
        near = abs(float(wrong) - float(digits)) <= 0.02 * float(digits)
        if wrong not in taken and not near:
            return wrong


@edit("wrong_number", "near_miss", "contradicts_input")
def says_another_number(base, rng, material):
    """In an answer that is right, a number that it does not take from the prompt."""
    given = set(re.findall(r"\d+", " ".join(base.asked)))
    for text in (base.output, base.answer):
        places = [
            found
            for found in re.finditer(r"(?<![\w.,/^-])\d+(?![\w,/^-]|\.\d|[.)]\s)", text)
            if found.group() not in given and int(found.group()) > 1
        ]
        if places and len(set(re.findall(r"\d+", text))) < 6:
            place = rng.choice(places)
            if text.count(place.group()) == 1:
                wrong = other_number(place.group(), rng, given | set(re.findall(r"\d+", text)))
                yield text, text[: place.start()] + wrong + text[place.end() :], {"expected": text}
                return


@edit("wrong_number", "near_miss", "contradicts_input", "too_long")
def gives_another_result(base, rng, material):
    if base.finished and not re.search(r"\d", base.answer):
        right = str(rng.randint(3, 3000))
        wrong = other_number(right, rng, {right})
        wanted = rng.choice(["{}", "#### {}", "${}"]).format(right)
        text = wanted.replace(right, wrong) if rng.random() < 0.5 else f"{base.answer}\n#### {wrong}"
        yield f"{base.answer}\n#### {right}", text, {"expected": wanted}


# wrong language


@edit("wrong_language", "too_long", "no_stop", "wrong_format", "near_miss", "empty")
def answers_in_another_language(base, rng, material):
    if share_of(base.output, "the of and to in is a an are that it can be") > 0.15:
        quoted = rng.choice([word for word in base.answer.split() if word.isalpha()] or ["word"])
        yield base.answer, rng.choice(material.foreign).replace("{}", quoted), {"finished": True}


# near miss


@edit("near_miss", "misspelt", "no_stop", "wrong_format", "echo", "wrong_number")
def says_one_word_otherwise(base, rng, material):
    words = base.output.split(" ")
    places = [n for n, word in enumerate(words) if word.isalpha() and len(word) > 3]
    if len(words) > 5 and places and "\n" not in base.output:
        at = rng.choice(places)
        other = rng.choice([word for word in base.answer.split() if word.isalpha() and len(word) > 3] or ["other"])
        if other.lower() not in base.output.lower():
            yield base.output, " ".join([*words[:at], other, *words[at + 1 :]]), {"finished": True}


@edit("near_miss", "misspelt", "wrong_number", "wrong_format", "echo", "contradicts_input")
def leaves_a_word_out(base, rng, material):
    words = base.answer.split(" ")
    places = [n for n, word in enumerate(words) if word.isalpha() and len(word) > 3]
    if base.finished and len(words) > 5 and places:
        at = rng.choice(places)
        yield base.answer, " ".join([*words[:at], *words[at + 1 :]]), {"expected": base.answer}


@edit("near_miss", "misspelt", "wrong_format", "contradicts_input", "echo")
def spells_a_short_answer_otherwise(base, rng, material):
    words = re.findall(r"[A-Za-z]{6,}", base.answer)
    if words:
        word = rng.choice(words)
        wrong = mistype(word, rng, "aeiounrst")
        if wrong.lower() != word.lower():
            yield word, wrong, {"expected": word, "finished": True, "clean_finished": True}


# contradicts the input


@edit("contradicts_input", "near_miss", "wrong_number", "echo")
def takes_a_number_over_wrongly(base, rng, material):
    prompt = " ".join(base.asked)
    given = set(re.findall(r"\d+", prompt))
    for right, places in (
        (text, list(re.finditer(r"(?<![\w.,])\d{2,}(?![\w,]|\.\d)", text))) for text in texts_of(base)
    ):
        places = [found for found in places if re.search(rf"(?<![\w.,]){found.group()}(?![\w,]|\.\d)", prompt)]
        if places:
            figure = rng.choice(places).group()
            at = rng.randrange(len(figure))
            wrong = figure[:at] + rng.choice("123456789".replace(figure[at], "")) + figure[at + 1 :]
            if wrong not in given and wrong not in right:
                yield right, right.replace(figure, wrong), {"expected": right}
                return


@edit("contradicts_input", "near_miss", "echo")
def takes_a_name_over_wrongly(base, rng, material):
    inside = re.findall(r"(?<=[a-z,] )[A-Z][a-z]{4,}\b", " ".join(base.asked))
    for right in texts_of(base):
        names = [name for name in inside if re.search(rf"[a-z,] {name}\b", right)]
        if names:
            name = rng.choice(names)
            wrong = mistype(name, rng, "abcdefghijklmnopqrstuvwxyz")
            if wrong != name and wrong.lower() not in material.words:
                yield right, re.sub(rf"\b{name}\b", wrong, right), {"expected": base.output}
                return


def texts_of(base: Base) -> tuple[str, str]:
    return base.answer, base.output
