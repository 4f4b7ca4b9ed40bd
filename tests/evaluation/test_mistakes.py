"""What is wrong with an answer: every kind, what is near to it and none, and the counts before and after."""

import json

import pytest

from gptft.evaluation.languages import LANGUAGES, language_of
from gptft.evaluation.mistake_counts import EXAMPLES, count_mistakes, note_mistakes
from gptft.evaluation.mistakes import DEFINITIONS, KINDS, Answer, asked_texts, find_mistakes
from gptft.evaluation.spelling import Spelling, one_edit
from gptft.run.tables import describe_evaluation
from gptft.tokenizer import embedded

LONG = "The lecture was given in the old hall, and all who came listened to it with pleasure."


def mistakes(text, expected="It is a bird.", asked=("What is an eagle?",), finished=True, spelling=None):
    return find_mistakes(Answer(asked, expected, text, finished, spelling))


class Words(Spelling):
    """The words of a vocabulary that has these whole."""

    def __init__(self, words):
        self.words = words.split()
        super().__init__(self, [])

    n_vocab = property(lambda self: len(self.words))

    def token_bytes(self, i):
        return f" {self.words[i]}".encode()


WORDS = Words("sentence describe beautiful mountain happy weather walk large light house green bright stop")


@pytest.mark.parametrize("text", ["It is a bird.", "it is  bird", " It is a bird!\n"])
def test_a_right_answer_has_no_mistake_but_that_it_does_not_stop(text):
    assert mistakes(text) == [] and mistakes(text, finished=False) == ["no_stop"]
    assert mistakes(text, finished=None) == []  # nobody knows


def case(text, holds, **others):
    return text, holds, others


CASES = {
    "no_stop": [
        case("A bird.\n\n### Instruction:\nName a fish.", True),
        case("A bird.\nUser: And a trout?", True),
        case("The question: is it a bird?", False),
        case("### Response:\nA bird", False, expected="### Response:\nAn animal"),
    ],
    "empty": [
        case("", True),
        case(" \n", True),
        case("...\n---", True),
        case("+", False, expected="-"),
        case("😀", False),
        case("?", False, expected="!"),
        case("<think>An eagle flies.</think>\n", True),
        case("<think>An eagle flies", True),
    ],
    "too_long": [
        case(LONG, True),
        case("It is a bird of prey.", False),
        case(LONG, False, expected=LONG[: len(LONG) // 2 + 5]),
        case("<think>" + LONG + "</think>It is a fish.", False),
        case("<think>" + LONG, False),
    ],
    "repetitive": [
        case("It flies very high. It is big. It flies very high.", True),
        case("It is very very very big.", True),
        case("a bird of prey and a bird of prey and a bird of prey and", True),
        case("the sound of the sea, the sound of the sea, or the sound of the sea", True),
        case("It is very, very big. It is big.", False),
        case("Row, row, row your boat", False, expected="Row, row, row the boat"),
        case("1. A cat is an animal.\n2. A dog is an animal.", False),
    ],
    "echo": [
        case("What sort of bird is an eagle? It is big.", True, asked=["What sort of bird is an eagle?"]),
        case("They has seen it.", True, asked=["Correct this.", "They has seen it"], expected="They have"),
        case(
            "They has seen it", False, asked=["Add a full stop.", "They has seen it"], expected="They has seen it now"
        ),
        case("Happy", True, asked=["Name the opposite.", "Happy"], expected="Sad"),
        case("The moon", False, asked=["Which is larger, the sun or the moon?"], expected="It is the sun"),
        case("They has seen it now", False, asked=["Add now!", "They has seen it"], expected="They has seen it, now!"),
        case("What is it?", False),
        case("A bird", False),
    ],
    "misspelt": [
        case("The mountian is large", True, spelling=WORDS),
        case("A beautful house", True, spelling=WORDS),
        case("The sentnce", True, spelling=WORDS),
        case("Mountains, lighthouses, unhappy, walking, stopped, happily, brightness", False, spelling=WORDS),
        case("The Mountian and GREEEN", False, spelling=WORDS),
        case("The xylophone", False, spelling=WORDS),
        case("A mountian", False, asked=["What is a mountian?"], spelling=WORDS),
        case("The mountian is large", False),
    ],
    "wrong_format": [
        case("The colour is red", True, expected='{"colour": "red"}'),
        case('{"colour": "red"', True, expected='{"colour": "blue"}'),
        case('{"colour": "red"}', False, expected='{"colour": "blue"}'),
        case("It adds two numbers.", True, expected="def f(a, b):\n    return a + b"),
        case("def g(a):\n    return a", False, expected="def f(a, b):\n    return a + b"),
        case("There are many", True, expected="42"),
        case("There are 42 of them", False, expected="43"),
        case("It depends on the weather", True, expected="Yes, it is."),
        case("No, it is not", False, expected="Yes."),
        case("Red, green and blue", True, expected="1. Red\n2. Green\n3. Black"),
        case("- Red\n- Green", False, expected="1. Red\n2. Green\n3. Blue"),
        case("The sentence is positive", True, expected="Negative"),
        case("A negative one", False, expected="Positive"),
    ],
    "wrong_number": [
        case("18", True, expected="17"),
        case("So it is\n#### 18", True, expected="It is #### 17"),
        case("It has 5 words", True, expected="It has seven words"),
        case("It has seven words in it", False, expected="It has 7 words"),
        case("That is 18 ounces", True, expected="That is 17.64 ounces"),
        case("That is about 17.6 ounces", False, expected="That is 17.64 ounces"),
        case("1. Red\n2. Green\n3. Blue", False, expected="There are 5 of them"),
        case("It has 12 legs", False, asked=["Of 12 spiders?"], expected="They have 96 legs"),
        case("In 1950 it was", False, expected="It was long ago"),
        case("It is H2O", False, expected="It is H3O"),
    ],
    "wrong_language": [
        case("Das ist ein großer Vogel und nicht sehr leicht zu sehen.", True),
        case("Это большая птица", True),
        case("这是一只很大的鸟", True),
        case("Le chat est sur la table", False, expected="Le chat est dans le jardin"),
        case("The cat is on the table and it is big", True, expected="Le chat est sur la table et il est grand"),
        case("Le chat est sur la table, il est grand", False, asked=["Say it in French: cat"], expected="Chat"),
        case("The word for it is 猫.", False),
    ],
    "near_miss": [
        case("The capital of France is Lyon.", True, expected="The capital of France is Paris."),
        case("colour", True, expected="color"),
        case("Rome is the capital of Italy, not Milan.", False, expected="The capital of France is Paris."),
        case("hot", False, expected="cold"),
    ],
    "contradicts_input": [
        case("It cost 1,235 dollars", True, asked=["It costed 1,253 dollars"], expected="They paid 1253"),
        case("It is 30 m", False, asked=["Add 10 to 20"], expected="It is 40 m"),
        case("It rains in Pariz today", True, asked=["Say that in Paris it rains"], expected="Rain falls."),
        case("Many go there, the Parisi", False, asked=["Ask Mary about Paris"], expected="Some do."),
        case("It rains in London", False, asked=["Say that in Paris it rains"], expected="Rain falls."),
    ],
}


@pytest.mark.parametrize("name", CASES)
def test_each_kind_is_what_its_definition_says_and_what_is_near_to_it_is_not(name):
    for text, holds, others in CASES[name]:
        assert (name in mistakes(text, **others)) == holds, text


def test_every_kind_has_cases_and_a_definition():
    assert list(CASES) == list(KINDS) == list(DEFINITIONS)


def test_nothing_else_is_said_of_an_empty_answer():
    assert mistakes("", "42", finished=False) == ["no_stop", "empty"]


@pytest.mark.parametrize(
    "a, b, near",
    [
        *(("word", other, True) for other in ("wordy", "sword", "wod", "ord", "wort", "wrod", "owrd")),
        *(("word", other, False) for other in ("word", "wordly", "drow", "wd", "warm", "rowd")),
    ],
)
def test_one_edit_is_a_letter_more_less_or_another_or_two_swapped(a, b, near):
    assert one_edit(a, b) == one_edit(b, a) == near


@pytest.mark.parametrize("name", LANGUAGES)
def test_a_language_is_known_by_its_own_words_and_no_two_are_taken_for_each_other(name):
    words = sorted(LANGUAGES[name])
    assert language_of(" ".join(words)) == name


def test_too_little_tells_no_language():
    assert language_of("") == language_of("Jane Austen") == language_of("1, 2, 3") == language_of("de la") == ""


def test_what_was_asked_of_a_conversation_is_what_the_user_said():
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
    ]
    assert asked_texts({"messages": [*messages, {"role": "user", "content": "c"}]}) == ["c", "a"]
    assert asked_texts({"instruction": "a", "input": "", "system": "s"}) == ["a"]


def rows():
    asked = [{"instruction": f"What comes after {n}?", "output": f"It is {n + 1}, I think."} for n in range(7)]
    made = []
    for n, record in enumerate(asked):
        made.append({"record": record, "expected": record["output"], "before": "", "after": record["output"]})
        made[-1] |= {"tokens": {}, "finished": {"before": True, "after": n != 6}}
    made[5]["after"] = "It is 9, I think."
    made[3]["left_out"] = "no room"
    return made


def test_mistakes_are_counted_before_and_after_with_examples_by_line():
    """A prompt that is left out counts for nothing."""
    noted = rows()
    counts = note_mistakes(noted, embedded(), {})
    assert "mistakes" not in noted[3]
    assert noted[5]["mistakes"] == {"before": ["empty"], "after": ["wrong_number", "near_miss"]}
    assert counts["empty"] == {"n": 6, "before": 6, "after": 0, "mended": 6, "new": 0, "examples": [1, 2, 3]}
    assert counts["near_miss"] == {"n": 6, "before": 0, "after": 1, "mended": 0, "new": 1, "examples": [6]}
    assert counts["no_stop"]["examples"] == [7] and list(counts) == list(KINDS)
    assert all(len(row["examples"]) <= EXAMPLES for row in counts.values())
    json.dumps(counts)


def test_one_side_alone_is_counted_too():
    noted = rows()
    counts = note_mistakes(noted, embedded(), {}, ("after",))
    assert counts["wrong_number"] == {"n": 6, "after": 1, "examples": [6]}
    assert noted[5]["mistakes"] == {"after": ["wrong_number", "near_miss"]}


def test_the_table_has_a_line_for_each_kind_that_occurs():
    said = describe_evaluation({"mistakes": note_mistakes(rows(), embedded(), {})}).splitlines()
    assert [line.split() for line in said if line.strip()] == [
        ["mistake", "answers", "before", "after", "mended", "new"],
        ["no", "stop", "6", "0", "1", "0", "1"],
        ["empty", "6", "6", "0", "6", "0"],
        ["wrong", "number", "6", "0", "1", "0", "1"],
        ["near", "miss", "6", "0", "1", "0", "1"],
    ]
    assert "mistake" not in describe_evaluation({"mistakes": count_mistakes([])})


@pytest.mark.parametrize(
    "expected, text",
    [
        ("-5", "5"),
        ("1.5", "15"),
        ("$1.50", "$150"),
        ("The low was -5 degrees.", "The low was 5 degrees."),
        ("x == y", "x != y"),
        ("x >= 3", "x <= 3"),
    ],
)
def test_a_sign_a_point_or_an_operator_makes_another_answer(expected, text):
    """Normalising takes them away, and such answers were once right."""
    assert mistakes(text, expected)


@pytest.mark.parametrize(
    "expected, text",
    [
        ("5", "The answer is five."),
        ("3.14", "3.14159"),
        ("1,400,000,000", "It has 1.4 billion people."),
        ("1,000", "1000"),
        ("42", "So it is 42.\n#### 42"),
    ],
)
def test_a_number_said_in_another_way_is_the_same(expected, text):
    assert not {"wrong_number", "wrong_format"} & set(mistakes(text, expected))


def test_zeros_of_a_number_and_of_a_matrix_are_no_stutter():
    assert "repetitive" not in mistakes("It is 1,000,000,000.", "It is 10^9.")
    assert "repetitive" not in mistakes("[[0, 0, 0], [0, 0, 0]]", "[[1, 0], [0, 1]]")
    assert "repetitive" in mistakes("the the the", "It is a bird.")


def test_ordinary_words_are_no_form_no_turn_and_no_slip():
    assert "wrong_format" not in mistakes("It is unknown.", "No one knows for sure.")
    assert "wrong_format" in mistakes("It is unknown.", "No, it is not.")
    assert "no_stop" not in mistakes("Mix it.\n\n### Tip:\nUse cold water.")
    asked = ("Nenne die Farbe: Der Apfel ist auf dem Tisch und die Birne in der Schale.",)
    assert "contradicts_input" not in mistakes("Die Äpfel sind rot, und der Tisch ist braun.", "Rot.", asked)


def test_scripts_without_blanks_have_no_single_words():
    long = "今天天气很好,我们去公园散步,然后回家吃饭,最后看书。"
    assert "wrong_format" not in mistakes("我们先去商店,再去公园,然后回家,最后休息。", long)
    assert "wrong_language" not in mistakes("日本の首都は東京です。", "東京")
    assert "wrong_language" in mistakes("Это столица.", "東京都")


@pytest.mark.parametrize(
    "text",
    [
        "Der var engang en konge, og han havde skove og katte som ledte efter de hurtige hunde i haven.",
        "Hän istui pöydällä ja luki kirjaa, mutta se ei ollut niin hyvä kuin hän oli toivonut.",
        "Postavili most na silnici, ale ten byl tak malý, že po něm nikdo nemohl jet.",
    ],
)
def test_words_of_another_language_are_not_misspelt_english(text):
    known = Words("skov katter ledt hurtig istua kirja luk postavil silnice nikd male engang konger")
    assert "misspelt" not in mistakes(text, text + " Ja.", (text,), spelling=known)
    assert "misspelt" not in mistakes(text, "?", ("?",), spelling=known)


def test_a_slip_of_a_word_of_the_prompt_is_misspelt_whatever_it_might_be_made_of():
    """`cookd` was once taken for cook with an ending."""
    words = Words("cook preset numer typical clean")
    asked = ("The chef cooked the numbers that she presented.",)
    for slip in ("cookd", "numers", "preseted"):
        assert "misspelt" in mistakes(f"They {slip} it.", "It is fine.", asked, spelling=words), slip
    assert "misspelt" not in mistakes("They cooker it.", "It is fine.", asked, spelling=words)
