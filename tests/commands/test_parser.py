"""One parser for all commands: the forms that a flag takes, and what is said of those that are unknown."""

import pytest

from gptft.__main__ import COMMANDS, listing
from gptft.commands import evaluate, generate, inspect, train
from gptft.commands.common import make_parser
from gptft.errors import UserError


def parse(command, *words):
    return make_parser(command).parse_args(list(words))


@pytest.mark.parametrize(
    "words, raw, prompts",
    [
        (["m", "a"], False, ["a"]),
        (["m", "--raw", "a"], True, ["a"]),
        (["m", "a", "--raw"], True, ["a"]),
        (["m", "--raw", "false", "a"], False, ["a"]),
        (["m", "--raw=false", "a"], False, ["a"]),
        (["m", "--raw", "False", "a"], False, ["a"]),
        (["m", "a", "--raw", "true"], True, ["a"]),
        (["m", "--raw", "--input", "x", "a"], True, ["a"]),
    ],
)
def test_a_switch_takes_both_forms_and_swallows_no_prompt(words, raw, prompts):
    options = parse(generate, *words)
    assert (options.raw, options.prompts) == (raw, prompts)


def test_a_switch_with_another_value_is_one_line():
    with pytest.raises(UserError, match=r"^--raw must be true or false, not 'maybe'$"):
        parse(generate, "m", "a", "--raw=maybe")


def test_dashes_and_attached_values_work_in_every_command():
    assert parse(generate, "m", "a", "--max-new-tokens=5").max_new_tokens == 5
    assert parse(evaluate, "m", "--data", "a", "--batch-size", "4").batch_size == 4
    assert parse(inspect, "--data", "a", "--mask-prompt=false").settings == {"data": ("a",), "mask_prompt": False}


def test_a_list_in_pieces_is_one_list_in_every_command():
    """`--data a --data b` would measure b alone, without a word about a."""
    for command, words in ((inspect, []), (evaluate, ["m"])):
        given = parse(command, *words, "--data", "a", "--fields", "text=t", "--data=b", "--data", "c", "d").settings
        assert given["data"] == ("a", "b", "c", "d")


def test_two_dashes_end_the_flags():
    """A prompt may begin with dashes."""
    assert parse(generate, "m", "--raw", "--", "--raw", "-x").prompts == ["--raw", "-x"]
    assert parse(generate, "m", "--what is this", "-5 and 3").prompts == ["--what is this", "-5 and 3"]


def test_a_negative_number_is_a_value_also_with_an_exponent():
    assert parse(train, "--lr", "-1e-4", "--seed", "-1").settings == {"lr": -1e-4, "seed": -1}


@pytest.mark.parametrize(
    "command, words, message",
    [
        (inspect, ["--dat", "a"], "unknown flag --dat; did you mean '--data'?"),
        (inspect, ["--dataset", "a"], "unknown flag --dataset; did you mean '--data'?"),  # another trainer's name
        (evaluate, ["m", "--dataset", "a"], "unknown argument --dataset; did you mean '--data'?"),
        (generate, ["--tempature=1"], "unknown argument --tempature; did you mean '--temperature'?"),
        (generate, ["m", "a", "--top_k"], "--top_k needs a value"),
        (inspect, ["--data"], "--data needs a value"),
        (inspect, ["--data", "a", "--rows", "1", "2"], "--rows takes one value, found 2: 1 2"),
        (inspect, ["--data", "a", "-x"], "unexpected argument '-x'"),
        (generate, ["m", "a", "-x"], "unexpected argument '-x'"),
        (generate, ["m", "--temperature", "hot"], "--temperature must be a number, not 'hot'"),
        (inspect, ["--data", "a", "--max_length", "x"], "--max_length must be a whole number, not 'x'"),
    ],
)
def test_what_is_wrong_names_the_flag_and_the_nearest(command, words, message):
    """A misspelt flag is named before what is missing: it may be what is missing."""
    with pytest.raises(UserError) as caught:
        parse(command, *words)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_headings_and_a_line_for_every_flag(name):
    parser = make_parser(COMMANDS[name])
    text = parser.format_help()
    lines = text.splitlines()
    for action in parser._actions:
        flag = action.option_strings[-1] if action.option_strings else action.dest
        (line,) = [line for line in lines if line.lstrip().removeprefix("-h, ").split()[:1] == [flag]]
        assert len(line.split()) > 2  # it says something
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert len(headings) >= 3 or name in ("merge", "consolidate", "chat"), headings
    assert text.startswith(f"usage: {'python train.py' if name == 'train' else f'python -m gptft {name}'} ")


def test_the_listing_has_a_line_for_every_command():
    for name, module in COMMANDS.items():
        assert f"  {name:<13}{module.__doc__.splitlines()[0]}" in listing().splitlines()
