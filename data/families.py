"""Instruction records: (instruction, input, output), one function for each family of tasks."""

import random

from combos import action, amount, comparison, facts, phrase, review

Record = dict[str, str]


def rewrite(rng: random.Random, held: bool, source: str, target: str, ways: list[str]) -> tuple[str, str, str]:
    """An instruction about a sentence, which is its input or, after a colon, its end."""
    event = action(rng, held)
    way = rng.choice(ways)
    if "{}" in way:
        return way.format(event[source]), "", event[target]
    return way, event[source], event[target]


def passive(rng: random.Random, held: bool) -> tuple[str, str, str]:
    ways = [
        "Rewrite the sentence in the passive voice.",
        "Put this sentence into the passive.",
        "Change the active sentence to a passive one.",
        "Use the passive voice.",
        "Say this in the passive: {}",
    ]
    return rewrite(rng, held, "past", "passive", ways)


def past(rng: random.Random, held: bool) -> tuple[str, str, str]:
    ways = [
        "Rewrite the sentence in the past tense.",
        "Put this sentence into the past.",
        "Change the present tense to the past tense.",
        "Tell it as if it happened yesterday.",
        "Say this in the past tense: {}",
    ]
    return rewrite(rng, held, "present", "past", ways)


def future(rng: random.Random, held: bool) -> tuple[str, str, str]:
    ways = [
        "Rewrite the sentence in the future tense.",
        "Put this sentence into the future.",
        "Change the present tense to the future tense.",
        "Tell it as if it happens tomorrow.",
        "Say this in the future tense: {}",
    ]
    return rewrite(rng, held, "present", "future", ways)


def negation(rng: random.Random, held: bool) -> tuple[str, str, str]:
    ways = [
        "Make the sentence negative.",
        "Negate this sentence.",
        "Write that this did not happen.",
        "Rewrite the sentence with the word not.",
        "Say the opposite with not: {}",
    ]
    return rewrite(rng, held, "past", "negation", ways)


def question(rng: random.Random, held: bool) -> tuple[str, str, str]:
    ways = [
        "Turn the statement into a question.",
        "Make a yes or no question of this sentence.",
        "Ask whether this happened.",
        "Rewrite the sentence as a question.",
        "Ask this as a question: {}",
    ]
    return rewrite(rng, held, "past", "question", ways)


def plural(rng: random.Random, held: bool) -> tuple[str, str, str]:
    one, many = phrase(rng, held)
    ways = [
        ("Write the plural.", one),
        ("Say it for many.", one),
        ("Change one to many.", one),
        (f"What is the plural of {one}?", ""),
        (f"Make this plural: {one}", ""),
    ]
    return *rng.choice(ways), many


def convert(rng: random.Random, held: bool) -> tuple[str, str, str]:
    large, unit, small, _ = amount(rng, held)
    ways = [
        (f"Convert {large} to {unit}.", ""),
        (f"How many {unit} are {large}?", ""),
        (f"Write {large} in {unit}.", ""),
        (f"Convert to {unit}.", large),
        (f"Give this in {unit}.", large),
    ]
    return *rng.choice(ways), small


def fact(rng: random.Random, held: bool) -> tuple[str, str, str]:
    both = facts(rng, held)
    given = f"{both[0][0]} {both[1][0]}"
    answer, asked = rng.choice(both)
    ways = [
        ("Answer the question from the text.", f"{given} {asked}"),
        ("Read the text and answer.", f"{given} {asked}"),
        (asked, given),
        (f"{given} {asked}", ""),
    ]
    return *rng.choice(ways), answer


def comparative(rng: random.Random, held: bool) -> tuple[str, str, str]:
    first, second, adjective, answer = comparison(rng, held)
    ways = [
        ("Use the comparative.", f"{second} is not as {adjective} as {first}."),
        ("Say the same with than.", f"{second} is not as {adjective} as {first}."),
        (f"Say this with than: {second} is not as {adjective} as {first}.", ""),
        (f"Compare {first} with {second}. Use the comparative of {adjective}.", ""),
    ]
    return *rng.choice(ways), answer


def sentiment(rng: random.Random, held: bool) -> tuple[str, str, str]:
    text, kind = review(rng, held)
    ways = [
        ("Is this review positive or negative?", text),
        ("Classify the review as positive or negative.", text),
        ("What is the sentiment of this review?", text),
        (f"Positive or negative? {text}", ""),
    ]
    return *rng.choice(ways), kind


FAMILIES = [passive, past, future, negation, question, plural, convert, fact, comparative, sentiment]


def records(rng: random.Random, held: bool, count: int) -> list[Record]:
    """`count` different records of each family, shuffled."""
    made: list[Record] = []
    for family in FAMILIES:
        seen: dict[tuple[str, str], Record] = {}
        while len(seen) < count:
            ask, given, answer = family(rng, held)
            seen[ask, given] = {
                "instruction": ask,
                "input": given,
                "output": answer,
                "family": family.__name__,
            }
        made += seen.values()
    rng.shuffle(made)
    return made
