"""What is wrong with an answer, by kind. Another kind is one function here: counts, `evaluate` and a run's files then
have it.

A kind takes an `Answer` and says whether the mistake is in it; an answer may have several. A right one (equal to the
expected but for case, punctuation and articles) has none, but that it does not stop or lacks the form. A kind's
definition stands in words beside the function, with the thresholds in it.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from difflib import SequenceMatcher

from gptft.data.shapes import Parts
from gptft.evaluation.languages import WITHOUT_BLANKS, language_of, main_script, names_a_language
from gptft.evaluation.metrics import (
    NOT_JSON,
    answer_in,
    exact_match,
    expected_number,
    is_code,
    normalised,
    normalised_match,
    number_match,
    parsed_code,
    parsed_json,
    rouge_l,
    unfenced,
    value_of,
    words_of,
)
from gptft.evaluation.spelling import WORD, Spelling, one_edit, words_in

TIMES, MORE = 2, 60  # too long: twice the characters, and a line more; without the line a second word would do
SENTENCE = 4  # words from which a sentence or line said twice is no accident
RUN, RUNS = 4, 3  # words in a row that are said so often; in English prose of this length only names are
STUTTER = 3  # times that the same words follow upon themselves
WHOLE = 5  # words from which a prompt is one that nobody repeats by chance
COVERED = 0.8  # of an answer that is nothing but a stretch of the prompt: a word or two may stand before it
STRETCH = 3  # words of a prompt that no answer has to itself; less where the input is no more
LINES = 2  # list items, from which a text is a list
FEW = 3  # words that may stand for one: an article, a full stop
NEAR = 0.75  # of the words in the same order: one of four is another
ALIKE = 0.8  # of the characters, for texts of one to three words
SLACK = Decimal("0.01")  # of a number that is no whole one, which may be rounded
LONG = 200  # characters beyond which texts are compared by words, though blanks may not part them
NAME = 4  # letters of a name, of which one is another


@dataclass(frozen=True)
class Answer:
    """An answer as it is looked at: the texts that were asked (instruction and input, or what the user said), what was
    expected, what came, whether it came to its end (None: nobody knows), and the words that are known (None: spelling
    is not looked at)."""

    asked: Sequence[str]
    expected: str
    text: str
    finished: bool | None = None
    spelling: Spelling | None = None

    @property
    def prompt(self) -> str:
        return "\n".join(self.asked)


Kind = Callable[[Answer], bool]
KINDS: dict[str, Kind] = {}
DEFINITIONS: dict[str, str] = {}


def kind(definition: str) -> Callable[[Kind], Kind]:
    """Register a kind of mistake under its function's name."""

    def register(function: Kind) -> Kind:
        KINDS[function.__name__], DEFINITIONS[function.__name__] = function, definition
        return function

    return register


def find_mistakes(answer: Answer) -> list[str]:
    """The names of the mistakes in an answer, in the order of `KINDS`."""
    if exact_match(answer.text, answer.expected):
        return [name for name in ("no_stop",) if KINDS[name](answer)]
    if says_the_same(answer.text, answer.expected):
        return [name for name in ("no_stop", "wrong_format") if KINDS[name](answer)]
    if empty(answer):  # nothing else can be said of it
        return [name for name in ("no_stop", "empty") if KINDS[name](answer)]
    return [name for name, holds in KINDS.items() if holds(answer)]


def asked_texts(parts: dict) -> list[str]:
    """The texts of a prompt's parts, but for the system's; of a conversation what the user and tools said, the last
    turn first."""
    if "messages" in parts:
        said = [message.get("content") or "" for message in parts["messages"] if message["role"] in ("user", "tool")]
        return said[::-1]
    return [text for part, text in Parts(parts).items() if text.strip() and part not in ("system", "response")]


@kind("the answer did not come to its end within the tokens that it had, or it writes the heading of a further turn")
def no_stop(answer: Answer) -> bool:
    turn = TURN.search(answer_in(answer.text))
    return answer.finished is False or bool(turn and not TURN.search(answer.expected))


@kind("no letter, number or symbol is in it, where the expected response has one")
def empty(answer: Answer) -> bool:
    return not says_something(answer_in(answer.text)) and says_something(answer_in(answer.expected))


@kind(f"more than {TIMES} times the characters of the expected response, and more than {MORE} more")
def too_long(answer: Answer) -> bool:
    said, wanted = len(answer_in(answer.text)), len(answer_in(answer.expected))
    return said > TIMES * wanted and said > wanted + MORE


@kind(
    f"a sentence or line of {SENTENCE} words or more comes twice, {RUN} words in a row {RUNS} times, or the same words "
    f"{STUTTER} times behind one another; not what the expected response repeats"
)
def repetitive(answer: Answer) -> bool:
    allowed = repeated(answer_in(answer.expected))
    return any(count > allowed[what] for what, count in repeated(answer_in(answer.text)).items())


@kind(
    f"it begins with the instruction or the input (of {WHOLE} words or more), or {COVERED:.0%} of its words are one "
    f"stretch of {STRETCH} words or more in these (of an answer that came to its end), or all of one; where the "
    "expected response is not so"
)
def echo(answer: Answer) -> bool:
    whole = answer.finished is not False  # the beginning of a sentence may be the question's
    return is_echo(answer.asked, answer.text, whole) and not is_echo(answer.asked, answer.expected, True)


@kind(
    "a word of small letters, outside quotation marks, that neither the prompts, the expected responses nor the "
    "vocabulary have, nor ordinary endings make of one, and that is one letter away from one of theirs; in English"
)
def misspelt(answer: Answer) -> bool:
    text = answer_in(answer.text)
    language = language_of(text) or language_of(f"{answer.prompt}\n{answer.expected}\n{text}")
    unknown = not language_of(text) and names_a_language(answer.prompt)  # a translation, too short to tell
    if answer.spelling is None or unknown or language not in ("", "English"):
        return False
    return bool(answer.spelling.misspelt(QUOTED.sub(" ", text), words_in(f"{answer.prompt}\n{answer.expected}")))


@kind(
    "the expected response is a JSON object or list, code, a number, yes or no, a list of items in lines, or one word, "
    f"and the answer is not: no JSON, no code, no number, neither, less than {LINES} items, more than {FEW} words"
)
def wrong_format(answer: Answer) -> bool:
    wanted, said = answer_in(answer.expected), answer_in(answer.text)
    if isinstance(parsed_json(wanted), dict | list):
        return parsed_json(said) is NOT_JSON
    if fenced := wanted.startswith("```"):
        wanted, said = unfenced(wanted), unfenced(said)
    if is_code(wanted, fenced):
        return not parsed_code(said)
    if expected_number(wanted) is not None:
        return not numbers_in(said)
    if YES_NO.match(wanted):
        return not YES_NO.match(said)
    if len(ITEM.findall(wanted)) >= LINES:
        return len(ITEM.findall(said)) < LINES
    return len(wanted.split()) == 1 and len(words_of(said)) > FEW and main_script(wanted) not in WITHOUT_BLANKS


@kind(
    "the expected response is a number, and the answer has another; or it says a number that the prompt does not, and "
    f"the answer lacks that and says one that neither has. What is no whole number may be {SLACK:.0%} off"
)
def wrong_number(answer: Answer) -> bool:
    if (number := expected_number(answer.expected)) is not None:
        said = numbers_in(answer.text)
        return bool(said) and not number_match(answer.text, answer.expected) and not same_number(number, said[-1])
    given, wanted, said = map(numbers_in, (answer.prompt, answer.expected, answer.text))
    missing = [n for n in wanted if n not in given and not any(same_number(n, m) for m in said)]
    new = [n for n in said if n != 1 and n not in given and not any(same_number(n, m) for m in wanted)]
    return bool(missing and new)


@kind(
    "its language (by the commonest words) or script is another than that of the expected response; where that is too "
    "short to tell, than that of prompt and response together, or than its script. A prompt that names a language "
    "may have it"
)
def wrong_language(answer: Answer) -> bool:
    said, wanted = language_of(answer_in(answer.text)), language_of(answer_in(answer.expected))
    if {said, wanted} == {"Cjk", "Japanese"}:  # a line of kanji alone
        return False
    if not said or names_a_language(answer.prompt):
        return bool(said and wanted) and said != wanted and not names_a_language(answer.prompt, said)
    wanted = wanted or language_of(f"{answer.prompt}\n{answer.expected}")
    return said != wanted and bool(wanted or main_script(answer.expected) not in ("", main_script(answer.text)))


@kind(
    f"{NEAR:.0%} of the expected words in their order (ROUGE-L), or of a text of one to three words {ALIKE:.0%} of the "
    "characters, and yet another text"
)
def near_miss(answer: Answer) -> bool:
    said, wanted = normalised(answer.text), normalised(answer.expected)
    if not wanted:  # signs alone, which are right or wrong
        return False
    if len(wanted.split()) > 3 or len(wanted) > LONG:
        return rouge_l(answer.text, answer.expected) >= NEAR
    return SequenceMatcher(None, said, wanted, autojunk=False).ratio() >= ALIKE


@kind(
    "a number that the expected response takes from the prompt has another digit in the answer, or two swapped; or "
    f"a name of {NAME} letters or more that the prompt has stands in it with one letter more, less or another"
)
def contradicts_input(answer: Answer) -> bool:
    given, wanted, said = (figures_in(text) for text in (answer.prompt, answer.expected, answer.text))
    taken = [figure for figure in given & wanted if figure not in said and len(figure) > 1]
    if any(is_slip(figure, other) for figure in taken for other in said - given - wanted):
        return True
    if language_of(f"{answer.prompt}\n{answer.text}") == "German":  # where every noun has a capital letter
        return False
    every = words_in(f"{answer.prompt}\n{answer.expected}")
    given, said = (names_in(text, answer.spelling) for text in (answer.prompt, answer.text))
    new = [name for name in said if name.lower() not in every]
    return any(one_edit(name, other) and not ends_alike(name, other) for name in given for other in new)


# what the kinds share

SIGNS = re.compile(r"(?<![\w.])-?\d+(?:[.,]\d+)*|[<>=+*/^!]*[<>=+*/^]")  # what normalising takes away, and matters

SPEAKS = "Human|User|Assistant|Instruction|Input|Question|Answer|Response"
TURN = re.compile(rf"\n\s*(?:(?:###\s*)?(?:{SPEAKS}):|\[INST\])|<\|\w+\|>")
QUOTED = re.compile(r"(?<!\w)'.*?'(?!\w)|\".*?(?:\"|$)|“.*?(?:”|$)")
YES_NO = re.compile(r"\W*(?:yes|no|true|false)\b(?=\W*$|[.,;:!])", re.IGNORECASE)
ITEM = re.compile(r"^[ \t]*(?:[-*•–]|\(?\d+[.)]|[A-Za-z][.)])[ \t]+\S", re.MULTILINE)
ITEM_NUMBER = re.compile(r"^[ \t]*\(?\d+[.)][ \t]", re.MULTILINE)
FIRST = re.compile(r"(?:^|[.!?:\n])\W*$")  # what stands before the first word of a sentence
FIGURE = re.compile(r"(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)?")
LETTER = re.compile(r"[^\W\d_]")
SPELLED = {
    word: Decimal(n)
    for n, word in enumerate(
        ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"), 1
    )
}
MANY = {"thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
NUMERAL = re.compile(rf"(?:({FIGURE.pattern})|\b({'|'.join(SPELLED)})\b)(?:\s+({'|'.join(MANY)})\b)?")


def says_the_same(text: str, expected: str) -> bool:
    """Whether a text is another but for case, punctuation and articles, its numbers and operators the same: 15 is not
    1.5, nor 5 degrees -5, nor `x != y` the same as `x == y`."""
    if not normalised_match(text, expected) or not normalised(text):  # of "+" nothing is left
        return False
    said, wanted = ([sign.replace(",", "") for sign in SIGNS.findall(answer_in(each))] for each in (text, expected))
    return said == wanted


def says_something(text: str) -> bool:
    """Whether a text has more than white space and punctuation."""
    return any(unicodedata.category(character)[0] in "LNS" for character in text)


def repeated(text: str) -> Counter:
    """What a text says again and again, and how often: sentences and lines, words in a row, and words that follow upon
    themselves; each with 0 where it is not too often."""
    counts: Counter = Counter()
    sentences = [" ".join(words_of(part)) for part in re.split(r"(?<=[.!?])\s+|\n+", text)]
    counts.update(sentence for sentence in sentences if len(sentence.split()) >= SENTENCE)
    found = Counter({what: count for what, count in counts.items() if count > 1})
    words = words_of(text)
    runs = Counter(" ".join(words[n : n + RUN]) for n in range(len(words) - RUN + 1))
    found.update({what: count for what, count in runs.items() if count >= RUNS and LETTER.search(what)})
    for size in range(1, RUN):  # longer ones are words in a row
        same = 0  # words that are those `size` before them, in a row
        for n in range(size, len(words)):
            same = same + 1 if words[n] == words[n - size] and not words[n].isdecimal() else 0
            if same >= size * (STUTTER - 1):
                found["stutter"] = 1
    return found


def is_echo(asked: Sequence[str], text: str, stretches: bool) -> bool:
    """Whether a text gives back what was asked; `stretches`: also where that is a part."""
    said = words_of(text)
    for prompt in (*asked, " ".join(asked)):
        words = words_of(prompt)
        if len(words) >= WHOLE and said[: len(words)] == words:
            return True
        size = SequenceMatcher(None, words, said, autojunk=False).find_longest_match().size
        long_enough = size == len(words) > 0 or (stretches and size >= STRETCH)
        if long_enough and size >= COVERED * len(said):
            return True
    return False


def numbers_in(text: str) -> list[Decimal]:
    """The numbers of a text, in its order, also those from one to twelve in words, and in millions; not those before
    the items of a list."""
    text = ITEM_NUMBER.sub("", answer_in(text)).lower()
    found = []
    for match in NUMERAL.finditer(text):
        figure, word, many = match.groups()
        value = SPELLED[word] if word else value_of(figure)
        if value is not None:
            found.append(value * MANY.get(many, 1))
    return found


def same_number(a: Decimal, b: Decimal) -> bool:
    """Whether two numbers are one, or the same but for rounding."""
    whole = a == int(a) and b == int(b)
    return a == b or (not whole and abs(a - b) <= SLACK * max(abs(a), abs(b)))


def figures_in(text: str) -> set[str]:
    """The numbers of a text as they are written in digits, without commas."""
    return {figure.replace(",", "") for figure in FIGURE.findall(ITEM_NUMBER.sub("", answer_in(text)))}


def is_slip(a: str, b: str) -> bool:
    """Whether one digit is another, or two neighbours are swapped."""
    return len(a) == len(b) and one_edit(a, b)


def names_in(text: str, spelling: Spelling | None) -> set[str]:
    """Words with a capital letter inside a sentence; also at its beginning, where the vocabulary does not have the word
    in small letters."""
    text, found = answer_in(text), set()
    for match in WORD.finditer(text):
        word = re.sub(r"['’]s?$", "", match.group())
        if len(word) >= NAME and word[0].isupper() and word[1:].islower():
            inside = not FIRST.search(text[max(0, match.start() - 4) : match.start()])
            if inside or (spelling is not None and word.lower() not in spelling.common):
                found.add(word)
    return found


def ends_alike(a: str, b: str) -> bool:
    """Whether one word is the other with an ending of one letter: a plural, a country's people."""
    shorter, longer = sorted((a, b), key=len)
    return longer[:-1] == shorter
