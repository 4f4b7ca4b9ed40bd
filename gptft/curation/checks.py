"""What one record's text says by itself: (kind, message) for everything that looks wrong in it."""

from __future__ import annotations

import re
from collections.abc import Iterator

NAMED = 60  # characters of a text that are shown

CANNOT = r"I (?:cannot|can['’]t|am unable to|am not able to)"
REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence)(?: language)?(?: model| assistant|,)"
    r"|\bas a (?:large )?language model\b"
    r"|\bI(?:['’]m| am) (?:just |only )?an? (?:ai|artificial intelligence)\b(?! ?[-\w]*(?:engineer|researcher|expert))"
    rf"|(?:\A\W*|\b(?:sorry|afraid|apologi[sz]e)\W+(?:but )?(?:that )?){CANNOT} "
    r"(?:assist|help|comply|fulfil|provide|answer|generate|do (?:that|this))"
    r"|\bmy knowledge cut-?off\b|<no ?input>|<no ?output>",
    re.IGNORECASE,
)
SPECIAL = re.compile(
    r"<\|[A-Za-z][\w ]{0,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:pad|unk|bos|eos)>",
)
HEADING = re.compile(
    r"^###\s*(Instruction|Input|Response|Question|Answer|Human|Assistant|User|System)\s*:[ \t]*$", re.MULTILINE
)
LOST = "\ufffd"  # what a decoder writes where it could not read a character
# C0 and C1 but for tab, line feed and carriage return; what has no width; what turns the direction; no characters
CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069\ufffe\uffff]"
)
RIGHT_TO_LEFT = re.compile("[\u0590-\u08ff\ufb1d-\ufdff\ufe70-\ufefc]")
DIRECTION = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
# Thai, Lao, Burmese and Khmer part words by U+200B
WORDS_APART = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
EMAIL = re.compile(r"(?<![\w.+-])[\w.+-]{1,64}@(?!example\.)(?:[\w-]{1,63}\.){1,5}[A-Za-z]{2,24}\b")
SECRET = re.compile(
    r"\bsk-[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}|\bxox[abpr]-[\w-]{10,}"
    r"|\bAIza[\w-]{35}\b|\bhf_[A-Za-z]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
CARD = re.compile(r"(?<![\d.-])[3-6]\d{3}(?:[ -]?\d){9,15}(?!\d|[.-]\d)")
# words that no sentence ends with, as they stand within one
OPEN_WORDS = frozenset(
    ("the", "and", "or", "but", "nor", "into", "than", "because", "although", "if", "whether", "while", "my", "your")
)
FENCE = re.compile(r"\s*(`{3,}|~{3,})(.*)")
# not behind an initial or an abbreviation
SENTENCE_END = re.compile(
    r"(?<!\bSt)(?<!\bDr)(?<!\bMr)(?<!\bMrs)(?<!\bMs)(?<!\bJr)(?<!\bvs)(?<!\b[A-Z])[.!?][\"')\]]*\s+(?=[\"'(]?[A-Z])"
)
LIST_ITEM = re.compile(r"\s*(?:[-*•–]|\(?\d+[.)]|[A-Za-z][.)])\s")
CODE = re.compile(r"[{};=<>|\\]|\b(?:def|return|import|SELECT|FROM)\b|^\s{4}|\bhttps?:", re.MULTILINE)


def shorten(text: str) -> str:
    """A text on one line, its end left out where it is long."""
    text = " ".join(text.split())
    return repr(text if len(text) <= NAMED else text[: NAMED - 3] + "...")


def normalise(text: str) -> str:
    """A text but for case and white space."""
    return " ".join(text.casefold().split())


def look_at(prompt: str, answers: list[str], texts: list[str]) -> Iterator[tuple[str, str]]:
    """Everything that looks wrong in a record: `prompt` is what is asked, without a template, `answers` what is
    learned, `texts` are all its texts, these included."""
    yield from find_echo(prompt, "\n".join(answers))
    for response in answers:
        if found := REFUSAL.search(response):
            yield "refusal", f"{shorten(_around(response, found))}"
        if why := why_cut(response):
            yield "cut", why
    for text in texts:
        yield from look_at_text(text)


def look_at_text(text: str) -> Iterator[tuple[str, str]]:
    """What looks wrong in any text, be it asked, learned, or plain."""
    if found := spelled_out(text):
        yield "special", f"it spells {found!r}"
    if LOST in text:
        at = text.index(LOST)
        yield "lost", f"U+FFFD in {shorten(text[max(0, at - 20) : at + 20])}"
    if characters := sorted({found[0] for found in find_control(text)}):
        yield "control", f"it holds {', '.join(f'U+{ord(each):04X}' for each in characters)}"
    if (mended := mend_encoding(text)) != text:
        at = next(n for n, (a, b) in enumerate(zip(text, mended + "\0", strict=False)) if a != b)
        yield (
            "mojibake",
            f"{shorten(text[max(0, at - 15) : at + 30])} should be {shorten(mended[max(0, at - 15) : at + 28])}",
        )
    for what, pattern in (("an e-mail address", EMAIL), ("a secret key", SECRET)):
        if found := ("@" in text or pattern is SECRET) and pattern.search(text):
            yield "personal", f"it holds what looks like {what}: {shorten(found[0][:8] + '...')}"
    if any(passes_luhn(found[0]) for found in CARD.finditer(text)):
        yield "personal", "it holds what looks like a card number"


def spelled_out(text: str) -> str:
    """A special token, or the heading of a template, that a text spells; "" where there is none. HTML's <s>...</s>
    strikes text through, and a single heading inside a text is Markdown."""
    for found in SPECIAL.finditer(text):
        struck = found[0] in ("<s>", "</s>") and "</s>" in text and "<s>" in text and not text.startswith("<s>")
        if not struck:
            return found[0]
    headings = list(HEADING.finditer(text))
    at_the_start = headings and not text[: headings[0].start()].strip()
    return headings[0][0] if at_the_start or len({heading[1] for heading in headings}) > 1 else ""


def find_control(text: str) -> Iterator[re.Match]:
    """Characters that cannot be seen, but for those with which some scripts part words or turn the direction."""
    turned = None
    for found in CONTROL.finditer(text):
        if found[0] == "\u200b" and WORDS_APART.search(text[max(0, found.start() - 1) : found.end() + 1]):
            continue
        if found[0] in DIRECTION:
            turned = bool(RIGHT_TO_LEFT.search(text)) if turned is None else turned
            if turned:
                continue
        yield found


def find_echo(prompt: str, response: str) -> Iterator[tuple[str, str]]:
    """The response is the prompt, or begins with the whole of it."""
    asked, answered = normalise(prompt), normalise(response)
    if len(asked.split()) >= 4 and answered.startswith(asked):
        yield "echo", "the response is the prompt" if asked == answered else "the response begins with the whole prompt"


def why_cut(response: str) -> str:
    """What shows that an answer ends in mid-sentence; "" where nothing does. Lists, verse, code and single phrases end
    without a stop, and are let pass."""
    text = response.rstrip()
    if not fences_close(text):
        return "a block of code is not closed"
    words = text.split()
    if len(words) < 6 or not (text[-1].isalpha() or text[-1] in ",-–—(") or CODE.search(text):
        return ""
    end = shorten(" ".join(words[-6:]))
    if text[-1] in ",(" or words[-1] in OPEN_WORDS:
        return f"it ends in {end}"
    lines = [line for line in text.splitlines() if line.strip()]
    unstopped = sum(line.rstrip()[-1] not in ".!?:;" for line in lines)
    if LIST_ITEM.match(lines[-1]) or (len(lines) > 2 and unstopped > len(lines) / 2):
        return ""
    sentences = SENTENCE_END.split(lines[-1])
    # a sentence before it on the same line, and a stretch behind that is too long for a heading or a name
    if len(sentences) > 1 and len(sentences[-1].split()) >= 4 and text[-1].islower():
        return f"it ends in {end}"
    return ""


def fences_close(text: str) -> bool:
    """Whether every block of code that is opened by a fence is closed by one at least as long (CommonMark 4.5)."""
    opened = ""
    for line in text.splitlines():
        if found := FENCE.match(line):
            if not opened:
                opened = found[1]
            elif found[1].startswith(opened) and not found[2].strip():
                opened = ""
    return not opened


def mend_encoding(text: str) -> str:
    """A text with UTF-8 that was read as another encoding put right, as ftfy does; as it is where that is absent."""
    if text.isascii():
        return text
    try:
        import ftfy
    except ImportError:
        return text
    return ftfy.fix_encoding(text)


def remove_control(text: str) -> str:
    """A text without what `find_control` finds."""
    for found in reversed(list(find_control(text))):
        text = text[: found.start()] + text[found.end() :]
    return text


def passes_luhn(number: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B), as that of cards is."""
    digits = [int(each) for each in number if each.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 3:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(digits[-1::-2])) % 10 == 0


def _around(text: str, found: re.Match) -> str:
    return text[max(0, found.start() - 10) : found.end() + 40]
