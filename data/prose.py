"""Plain text: what the families ask for, told as prose, one function for each kind of paragraph."""

import random
from collections.abc import Callable

from combos import action, amount, comparison, facts, phrase, review, upper
from words import CITIES, COLOURS, DAYS, NAMES, PLACES, THINGS, UNITS


def thing_said(rng: random.Random) -> str:
    """Something worth repeating."""
    sentences: list[Callable[[], str]] = [
        lambda: action(rng, False)[rng.choice(["present", "past", "passive", "negation", "question"])],
        lambda: facts(rng, False)[0][0],
        lambda: comparison(rng, False)[3],
        lambda: review(rng, False)[0],
        lambda: rng.choice(phrase(rng, False)),
        lambda: amount(rng, False)[rng.choice([0, 2])],
        lambda: str(rng.randint(10, 99)),
    ]
    return rng.choice(sentences)()


def echo(rng: random.Random) -> str:
    """Somebody says something and somebody repeats it, word for word."""
    said = thing_said(rng)
    a, b = rng.sample(NAMES, 2)
    return rng.choice(
        [
            f"{a} said: {said}\n{b} repeated: {said}",
            f"{said}\n{said}",
            f'{a} said: "{said}" {b} said it again: "{said}"',
            f"{a} wrote in a letter: {said}\n{b} read aloud: {said}",
            f"On the wall stood the words: {said}\n{a} copied them into a book.\n{said}",
        ]
    )


def recital(rng: random.Random) -> str:
    """Words read out, and read out again: only the first reading can tell what comes next."""
    some = rng.choice([[one for one, _ in THINGS], NAMES, CITIES + COLOURS + DAYS])
    said = " ".join(rng.sample(some, rng.randint(4, 10)))
    return rng.choice([f"{said}\n{said}", f"They read {said} and once more {said}", f'"{said}" "{said}"'])


LESSONS = {
    "past": ["In the past tense", "As it happened yesterday", "In the past"],
    "future": ["In the future tense", "As it happens tomorrow", "In the future"],
    "passive": ["In the passive voice", "In the passive"],
    "negation": ["In the negative", "With the word not", "As something that did not happen"],
    "question": ["As a question", "As a yes or no question"],
}


def lesson(rng: random.Random) -> str:
    """A sentence put into other forms at school."""
    event = action(rng, False)
    given = rng.choice(["present", "past"])
    asked = [form for form in LESSONS if form != given]
    told = [(rng.choice(LESSONS[form]), event[form]) for form in rng.sample(asked, rng.randint(2, 3))]
    return event[given] + rng.choice(
        [
            "".join(f"\n{way}:\n{form}" for way, form in told),
            "".join(f" {way} it is: {form}" for way, form in told),
            "".join(f' {way}: "{form}"' for way, form in told),
        ]
    )


def tale(rng: random.Random) -> str:
    """What happened, told in several forms."""
    event = action(rng, False)
    day, place, a = rng.choice(DAYS), rng.choice(PLACES), rng.choice(NAMES)
    told = [event["past"], event["passive"], f"{event['question']} Yes."]
    rng.shuffle(told)
    return rng.choice(
        [
            f"It was {day}. {' '.join(told)}",
            f'{a} asked in the {place}: "{event["question"]}" They said: "{event["past"]}"',
            f"{event['present']} So it goes every {day}. So it went last {day} too. {event['past']}",
            f"Some said: {event['past']}\nOthers said: {event['negation']}\nNobody in the {place} knew.",
        ]
    )


def growth(rng: random.Random) -> str:
    """One thing becomes many."""
    one, many = phrase(rng, False)
    day, place, a = rng.choice(DAYS), rng.choice(PLACES), rng.choice(NAMES)
    return rng.choice(
        [
            f"On {day} there was {one} in the {place}. A week later there were {many}.",
            f"{a} drew {one}. Then {a} drew {many}.",
            f"First {one}, then {many}.",
            f"The plural is easy, said {a}: {one}, {many}.",
            f"{upper(one)} is not enough for the {place}. We need\n{many}.",
        ]
    )


def measure(rng: random.Random) -> str:
    """Quantities, and the same in a smaller unit."""
    unit = rng.choice(UNITS)
    three = [amount(rng, False, unit) for _ in range(3)]
    large, smaller, small, sentence = three[0]
    return rng.choice(
        [
            f"{sentence.format(large)} In {smaller} that makes {small}.",
            f"{sentence.format(large)} The teacher wanted to know it in {smaller}.\n{small}",
            f"How many {smaller} are {large}? {small}",
            "".join(f"{large} is {small}. " for large, _, small, _ in three).strip(),
            f"{', '.join(q[0] for q in three)}; in {smaller} they are {', '.join(q[2] for q in three)}.",
        ]
    )


def gossip(rng: random.Random) -> str:
    """Facts about two people, questions, answers."""
    told = facts(rng, False)
    given = " ".join(fact for fact, _ in told)
    rng.shuffle(told)
    return rng.choice(
        [
            f"{given}\n" + "\n".join(f"{asked}\n{fact}" for fact, asked in told),
            f"{given} Told in another order: " + " ".join(fact for fact, _ in told),
            f"{given} " + " ".join(f"{asked} {fact}" for fact, asked in told),
            f'{given} "{told[0][1]}" asked the teacher.\n{told[0][0]}',
        ]
    )


def contest(rng: random.Random) -> str:
    """Two people compared."""
    first, second, adjective, answer = comparison(rng, False)
    return rng.choice(
        [
            f"{second} is not as {adjective} as {first}. {answer}",
            f"They compared {first} with {second}. {answer} So {second} is not as {adjective} as {first}.",
            f"{first} is {adjective}. {second} is not as {adjective}. {answer}",
        ]
    )


def guestbook(rng: random.Random) -> str:
    """A review and how it was taken."""
    text, kind = review(rng, False)
    a = rng.choice(NAMES)
    return rng.choice(
        [
            f"{a} wrote in the guest book: {text} It was a {kind} review.",
            f"{text} So wrote {a}, and the cook called the review {kind}.",
        ]
    )


# each kind of paragraph with its weight
SCENES = {
    recital: 1,
    echo: 4,
    lesson: 4,
    tale: 1,
    growth: 2,
    measure: 5,
    gossip: 6,
    contest: 1,
    guestbook: 1,
}


def prose(rng: random.Random, size: int) -> str:
    """About `size` bytes of paragraphs."""
    paragraphs: list[str] = []
    written = 0
    while written < size:
        scene = rng.choices(list(SCENES), list(SCENES.values()))[0]
        paragraphs.append(scene(rng) + "\n")
        written += len(paragraphs[-1]) + 1
    return "\n".join(paragraphs)
