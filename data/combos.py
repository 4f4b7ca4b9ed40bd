"""Combinations of words, drawn from the training side or from the held-out side of the split."""

import random
import zlib
from collections.abc import Callable

from words import (
    ADJECTIVES,
    ASPECTS,
    BLAME,
    CITIES,
    COLOURS,
    COMPARATIVES,
    CREATURES,
    DAYS,
    NAMES,
    PLACES,
    PRAISE,
    ROLES,
    THINGS,
    UNITS,
    VERBS,
)


def held_out(*words: object) -> bool:
    """Whether this combination belongs to the test split: a fixed one in eight."""
    return zlib.crc32(" ".join(map(str, words)).encode()) % 8 == 0


def draw(rng: random.Random, held: bool, make: Callable[[random.Random], tuple]) -> tuple:
    """A combination from the wanted side of the split."""
    while True:
        words = make(rng)
        if held_out(*words) == held:
            return words


def upper(text: str) -> str:
    return text[0].upper() + text[1:]


def person(rng: random.Random) -> str:
    """Somebody who does something: Mara, or the baker."""
    return rng.choice(NAMES) if rng.random() < 0.5 else "the " + rng.choice(ROLES)


def action(rng: random.Random, held: bool) -> dict[str, str]:
    """One event in every form that the grammar families ask for."""
    who, verb, what = draw(rng, held, lambda r: (person(r), r.choice(VERBS), r.choice(THINGS)[0]))
    base, third, past, participle = verb
    return {
        "present": upper(f"{who} {third} the {what}."),
        "past": upper(f"{who} {past} the {what}."),
        "future": upper(f"{who} will {base} the {what}."),
        "passive": f"The {what} was {participle} by {who}.",
        "negation": upper(f"{who} did not {base} the {what}."),
        "question": f"Did {who} {base} the {what}?",
    }


def amount(rng: random.Random, held: bool, unit: tuple = ()) -> tuple[str, str, str, str]:
    """A quantity, the smaller unit, the same quantity in it, and a sentence to measure something."""
    large, small, zeros, sentence = unit or rng.choice(UNITS)
    digits, _ = draw(rng, held, lambda r: (10 * r.randint(1, 9) + r.randint(1, 9), large))
    return f"{digits} {large}", small, f"{digits}{'0' * zeros} {small}", sentence


def phrase(rng: random.Random, held: bool) -> tuple[str, str]:
    """One small box, many small boxes."""
    nouns = THINGS + CREATURES
    adjective, (one, many) = draw(rng, held, lambda r: (r.choice(ADJECTIVES), r.choice(nouns)))
    return f"one {adjective} {one}", f"many {adjective} {many}"


FACTS = [
    ("{} lives in {}.", "Where does {} live?", CITIES),
    ("{} likes the colour {}.", "Which colour does {} like?", COLOURS),
    ("{} came on {}.", "When did {} come?", DAYS),
    ("{} works in the {}.", "Where does {} work?", PLACES),
]


def facts(rng: random.Random, held: bool) -> list[tuple[str, str]]:
    """Facts of different kinds about two people, each with the question that it answers."""
    kinds = rng.sample(FACTS, 2)
    a, b, x, y = draw(rng, held, lambda r: (*sorted(r.sample(NAMES, 2)), *(r.choice(values) for _, _, values in kinds)))
    told = [
        (fact.format(who, value), question.format(who))
        for (fact, question, _), who, value in zip(kinds, (a, b), (x, y), strict=True)
    ]
    rng.shuffle(told)
    return told


def comparison(rng: random.Random, held: bool) -> tuple[str, str, str, str]:
    """Two names, an adjective, and the comparison of the two."""
    first, second, (adjective, more) = draw(rng, held, lambda r: (*r.sample(NAMES, 2), r.choice(COMPARATIVES)))
    return first, second, adjective, f"{first} is {more} than {second}."


def review(rng: random.Random, held: bool) -> tuple[str, str]:
    """What a guest wrote, and whether it is positive or negative."""
    kind, words = rng.choice([("positive", PRAISE), ("negative", BLAME)])
    a, b, x, y = draw(rng, held, lambda r: (*sorted(r.sample(ASPECTS, 2)), *r.sample(words, 2)))
    first, second = rng.sample([f"the {a} was {x}", f"the {b} was {y}"], 2)
    return f"{upper(first)} and {second}.", kind
