"""Write the embedded data: plain text, instruction records, held-out records and a small BPE.

    python data/make.py           write the files next to this script
    python data/make.py --check   exit 1, naming any file that differs from what would be written

Everything is made from the word lists in words.py by one seeded generator, so that a 0.75M-parameter GPT
can be pretrained and tuned on two CPU cores in two minutes.  The plain text tells, as prose, what the
instructions ask for later: someone repeats a sentence, puts it in the passive, converts a length.  That is
where the model learns to copy; the prompt template never occurs in it.

The held-out split is by content, not by line.  `held_out` marks one combination of words in eight (who did
what to what; how many metres; who lives where).  Marked combinations make up the test records and occur
nowhere else, in no phrasing, family or paragraph, though each of their words does.
"""

import base64
import json
import random
import re
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

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

SEED = 1
TEXT_BYTES = 2_200_000
TRAIN_PER_FAMILY = 700
TEST_PER_FAMILY = 40
VOCABULARY = 1280
HERE = Path(__file__).resolve().parent

# The pre-tokeniser for tiktoken.Encoding(pat_str=...), and what is its equal for Python's re: a contraction,
# a word with the space before it, one or two digits, punctuation with line ends after it, line ends, blanks.
PAT_STR = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
PATTERN = re.compile(r"'(?:[sdmt]|ll|ve|re)| ?[^\W\d_]+|\d{1,2}| ?(?:[^\s\w]|_)+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
TEMPLATE = "### Question:\n{}\n\n### Answer:\n{}"

Record = dict[str, str]


# ---- combinations of words, drawn from the training side or the held-out side -----------------------------


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


# ---- instruction records: (instruction, input, output), one function for each family ----------------------


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


# ---- plain text: the same things told as prose, one function for each kind of paragraph -------------------


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


# ---- byte-pair encoding -----------------------------------------------------------------------------------


def train_bpe(text: str, size: int) -> list[bytes]:
    """The 256 bytes, then the most frequent adjacent pair inside a pre-token, again and again."""
    tokens = [bytes([i]) for i in range(256)]
    counts = Counter(PATTERN.findall(text))
    words = [([bytes([b]) for b in word.encode()], n) for word, n in sorted(counts.items())]
    while len(tokens) < size:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for parts, n in words:
            for pair in pairwise(parts):
                pairs[pair] += n
        if not pairs:
            break
        left, right = min(pairs, key=lambda pair: (-pairs[pair], pair))
        tokens.append(left + right)
        for parts, _ in words:
            for i in range(len(parts) - 2, -1, -1):
                if parts[i : i + 2] == [left, right]:
                    parts[i : i + 2] = [left + right]
    return tokens


# ---- the files --------------------------------------------------------------------------------------------


def check_split(train: list[Record], test: list[Record]) -> None:
    """No question in common, and every word of a held-out record known from its family."""
    asked = [{(r["instruction"], r["input"]) for r in part} for part in (train, test)]
    known = [
        {(r["family"], word) for r in part for word in re.findall("[A-Za-z]+", " ".join(r.values()))}
        for part in (train, test)
    ]
    assert asked[0].isdisjoint(asked[1]), "questions in both splits"
    assert known[1] <= known[0], sorted(known[1] - known[0])


def build() -> dict[str, bytes]:
    """Every file's name and content."""
    train = records(random.Random(SEED), False, TRAIN_PER_FAMILY)
    test = records(random.Random(SEED + 1), True, TEST_PER_FAMILY)
    text = prose(random.Random(SEED + 2), TEXT_BYTES)
    check_split(train, test)
    asked = [TEMPLATE.format("\n".join(filter(None, (r["instruction"], r["input"]))), r["output"]) for r in train]
    tokens = train_bpe("\n\n".join([text, *asked]), VOCABULARY)
    files = {
        "text.txt": text,
        "instructions.jsonl": "".join(json.dumps(r) + "\n" for r in train),
        "instructions-test.jsonl": "".join(json.dumps(r) + "\n" for r in test),
        "vocab.tiktoken": "".join(f"{base64.b64encode(token).decode()} {rank}\n" for rank, token in enumerate(tokens)),
    }
    return {name: content.encode() for name, content in files.items()}


def main() -> int:
    files = build()
    if sys.argv[1:] == ["--check"]:
        stale = [n for n, c in files.items() if not (HERE / n).is_file() or (HERE / n).read_bytes() != c]
        for name in stale:
            print(f"differs: data/{name}")
        return 1 if stale else 0
    for name, content in files.items():
        (HERE / name).write_bytes(content)
        print(f"data/{name}: {len(content):,} bytes, {len(content.splitlines()):,} lines")
    return 0


if __name__ == "__main__":
    sys.exit(main())
