"""In which language a text is: by its script, and for Latin letters by the commonest words of some languages."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

LETTERS, LEAST = 2, 4  # letters that tell a script, and words that tell a language
SHARE = 0.2  # of a text's words that are among the commonest of its language
AHEAD = 1.5  # times as many as of the next language

# Some of the commonest words of each
COMMON = {
    "English": "the of and to in is that it for was with as are this be by an a on or from they have which you can not "
    "he she his her we their has will at your what who how does i my would there",
    "French": "le la les des est et une un dans pour qui que sur avec il elle du au ce sont pas plus nous vous ne de",
    "German": "der die das und ist ein eine in den von zu mit auf für nicht dem des sich es auch sind wird im ich wir",
    "Spanish": "el la los las de y es un una en que por con para se del al no lo su como más son este esta",
    "Italian": "il la di che è e un una in del della con non sono si le gli da al nel anche più come questo",
    "Portuguese": "o a os as de e é um uma em que para com não se do da no na por mais são ao como dos",
    "Dutch": "de het een en van is in dat op te zijn met voor niet die aan er om ook als door bij naar wordt deze",
    "Swedish": "och att det som en på är av för med till den har inte om ett i var de kan från vi så men",
    "Polish": "w i na z do się że nie to jest o jak po od za przez dla są ale ma oraz który tym być",
    "Danish": "og i det en den til er som på de med for af av ikke ikkje der var et har om jeg han hun vi så "
    "blev ble fra deres",  # Norwegian goes with it
    "Finnish": "ja on ei se että hän oli mutta myös kun niin ovat joka kuin tai vain mitä tämä ole sen hän minä",
    "Czech": "a je v se na že to s z do si ale jako by pro jsou byl byla tak který podle ve jeho také",
    "Romanian": "și în de la cu pe nu este un o din că pentru care mai sunt au fost ca dar prin lui",
    "Indonesian": "yang dan di ini itu dengan untuk tidak dari dalam akan pada juga adalah ke bisa ada saya kamu oleh",
    "Turkish": "ve bir bu için ile da de olarak daha çok en olan gibi var ne sonra kadar ise her değil",
}
LANGUAGES = {name: frozenset(words.split()) for name, words in COMMON.items()}
SHARED = Counter(word for words in LANGUAGES.values() for word in words)
WITHOUT_BLANKS = ("CJK", "JAPANESE", "THAI")  # scripts that part no words by blanks
KANA = ("HIRAGANA", "KATAKANA")
OTHERS = (
    "Russian",
    "Ukrainian",
    "Greek",
    "Hebrew",
    "Arabic",
    "Hindi",
    "Chinese",
    "Japanese",
    "Korean",
    "Thai",
    "Latin",
    "Norwegian",
)


def language_of(text: str) -> str:
    """The name of the language, or of the script where it is not Latin; empty where too little tells it."""
    script = main_script(text)
    return latin_language(text) if script == "LATIN" else script.capitalize()


def main_script(text: str) -> str:
    """The script of more than half of the letters; empty where there is none. Kana makes Chinese signs Japanese."""
    scripts = Counter(script_of(character) for character in text if character.isalpha())
    if kana := sum(scripts.pop(script, 0) for script in KANA):
        scripts["JAPANESE"] = kana + scripts.pop("CJK", 0)
    script, letters = max(scripts.items(), key=lambda item: item[1], default=("", 0))
    return script if letters >= LETTERS and 2 * letters > scripts.total() else ""


def names_a_language(text: str, language: str = "") -> bool:
    """Whether a text speaks of a language, as a prompt does that asks for a translation; of this one, if it is named. A
    script is meant by any of the languages that are not written in Latin letters."""
    names = (language,) if language in LANGUAGES else OTHERS if language else (*LANGUAGES, *OTHERS)
    return any(name in text for name in names)


def script_of(character: str) -> str:
    """The first word of a letter's name: LATIN, CYRILLIC, CJK."""
    return unicodedata.name(character, "").partition(" ")[0]


def latin_language(text: str) -> str:
    """The language of which a text has the most of the commonest words; one that several languages have counts in
    parts. Empty where there are too few, or two languages are too near to each other."""
    words = re.findall(r"[^\W\d_]+", text.lower())
    counts = {name: sum(1 / SHARED[word] for word in words if word in common) for name, common in LANGUAGES.items()}
    (best, most), (_, next_most) = Counter(counts).most_common(2)
    hits = sum(word in LANGUAGES[best] for word in words)
    enough = hits >= LEAST and hits >= SHARE * len(words)
    return best if enough and most >= AHEAD * next_most else ""
