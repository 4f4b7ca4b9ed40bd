"""What one record's text says by itself: (kind, message) for everything that looks wrong in it."""

from __future__ import annotations

import re
from collections.abc import Iterator

NAMED = 60  # characters of a text that are shown

REFUSAL = re.compile(
    r"\bas an? (?:ai|artificial intelligence)(?: language)?(?: model| assistant|,)"
    r"|\bas a (?:large )?language model\b"
    r"|\bI(?:['’]m| am) (?:just |only )?an? (?:ai|artificial intelligence)\b(?! ?[-\w]*(?:engineer|researcher|expert))"
    r"|\bI(?:['’]m| am) (?:sorry|afraid),? (?:but )?(?:that )?I (?:can(?:not|['’]t)|am (?:not able|unable))"
    r"|^\W*I (?:cannot|can['’]t|am unable to|am not able to) (?:assist|help|comply|fulfil|provide|answer|do that)"
    r"|\bmy (?:knowledge cut-?off|training data)\b|<no ?input>|<no ?output>",
    re.IGNORECASE,
)
SPECIAL = re.compile(
    r"<\|[A-Za-z][\w ]{0,40}\|>|</?s>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:pad|unk|bos|eos)>"
    r"|^###\s*(?:Instruction|Input|Response|Question|Answer|Human|Assistant|User|System)\s*:",
    re.MULTILINE,
)
# C0 and C1 but for tab, line feed and carriage return; what has no width; what turns the direction; U+FFFD
CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\u200b\u2060\ufeff\u202a-\u202e\u2066-\u2069\ufffd-\uffff]"
)
EMAIL = re.compile(r"\b[\w.+-]+@(?!example\.)(?:[\w-]+\.)+[A-Za-z]{2,}\b")
SECRET = re.compile(
    r"\bsk-[A-Za-z0-9_-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bgh[pousr]_[A-Za-z0-9]{36}|\bxox[abpr]-[\w-]{10,}"
    r"|\bAIza[\w-]{35}\b|\bhf_[A-Za-z]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----"
)
CARD = re.compile(r"(?<![\d.-])[3-6]\d{3}(?:[ -]?\d){9,15}(?!\d|[.-]\d)")
# words that no sentence ends with
OPEN_WORDS = frozenset(
    "a an the and or but nor into than because although if whether while my your".split()  # noqa: SIM905
)
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


def look_at(prompt: str, response: str, texts: list[str]) -> Iterator[tuple[str, str]]:
    """Everything that looks wrong in a record: `prompt` is what is asked, without a template, `response` what is
    learned, `texts` are all its texts, these included."""
    yield from find_echo(prompt, response)
    if found := REFUSAL.search(response):
        yield "refusal", f"{shorten(_around(response, found))}"
    if why := why_cut(response):
        yield "cut", why
    for text in texts:
        yield from look_at_text(text)


def look_at_text(text: str) -> Iterator[tuple[str, str]]:
    """What looks wrong in any text, be it asked, learned, or plain."""
    if found := SPECIAL.search(text):
        yield "special", f"it spells {found[0]!r}"
    if characters := sorted(set(CONTROL.findall(text))):
        yield "control", f"it holds {', '.join(f'U+{ord(each):04X}' for each in characters)}"
    if (mended := mend_encoding(text)) != text:
        at = next(n for n, (a, b) in enumerate(zip(text, mended + "\0", strict=False)) if a != b)
        yield (
            "mojibake",
            f"{shorten(text[max(0, at - 15) : at + 30])} should be {shorten(mended[max(0, at - 15) : at + 28])}",
        )
    for what, pattern in (("an e-mail address", EMAIL), ("a secret key", SECRET)):
        if found := pattern.search(text):
            yield "personal", f"it holds what looks like {what}: {shorten(found[0][:8] + '...')}"
    if any(passes_luhn(found[0]) for found in CARD.finditer(text)):
        yield "personal", "it holds what looks like a card number"


def find_echo(prompt: str, response: str) -> Iterator[tuple[str, str]]:
    """The response is the prompt, or begins with the whole of it."""
    asked, answered = normalise(prompt), normalise(response)
    if len(asked.split()) >= 4 and answered.startswith(asked):
        yield "echo", "the response is the prompt" if asked == answered else "the response begins with the whole prompt"


def why_cut(response: str) -> str:
    """What shows that an answer ends in mid-sentence; "" where nothing does. Lists, verse, code and single phrases end
    without a stop, and are let pass."""
    text = response.rstrip()
    if text.count("```") % 2:
        return "a block of code is not closed"
    words = text.split()
    if len(words) < 6 or not (text[-1].isalpha() or text[-1] in ",-–—(") or CODE.search(text):
        return ""
    end = shorten(" ".join(words[-6:]))
    if text[-1] in ",(" or words[-1].lower() in OPEN_WORDS:
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
    """A text without what CONTROL finds."""
    return CONTROL.sub("", text)


def passes_luhn(number: str) -> bool:
    """Whether the last digit is the check digit of the others (ISO/IEC 7812-1, annex B), as that of cards is."""
    digits = [int(each) for each in number if each.isdigit()]
    if not 13 <= len(digits) <= 19 or len(set(digits)) < 3:
        return False
    doubled = [sum(divmod(2 * digit, 10)) for digit in digits[-2::-2]]
    return (sum(doubled) + sum(digits[-1::-2])) % 10 == 0


def _around(text: str, found: re.Match) -> str:
    return text[max(0, found.start() - 10) : found.end() + 40]
