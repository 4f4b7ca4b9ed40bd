"""`python -m gptft generate`: prompts from the command line or line by line."""

import re
import subprocess

from cli import GPTFT, is_one_line, shell, write

from gptft import generation, loading


def test_generate_gives_what_python_gives_from_the_checkpoint_alone(saved, ask):
    """Tokenizer and template travel with the checkpoint; prompts come as words or line by line."""
    path = saved()
    model, tokenizer = loading.load(path)
    expected = generation.generate(model, tokenizer, ["How many?", "Who is it?"], 8)
    assert expected[0] != expected[1] and all(expected)
    raw = generation.generate(model, tokenizer, ["How many?"], 8, raw=True)
    assert raw[0] != expected[0]

    status, out, err = shell(GPTFT, "generate", path, "How many?", "Who is it?", "--max_new_tokens", "8")
    assert (status, err) == (0, "") and out == "".join(text + "\n" for text in expected)
    status, out, _ = ask(GPTFT, "generate", path, "--max_new_tokens", "8", stdin="How many?\n\nWho is it?\n")
    assert status == 0 and out == "".join(text + "\n" for text in expected)
    status, out, _ = ask(GPTFT, "generate", path, "How many?", "--max_new_tokens", "8", "--raw")
    assert out == raw[0] + "\n"
    given = generation.generate(model, tokenizer, [{"instruction": "Add.", "input": "1 2"}], 8)
    status, out, _ = ask(GPTFT, "generate", path, "Add.", "--input", "1 2", "--max_new_tokens", "8")
    assert out == given[0] + "\n"


def test_lookup_changes_no_response_and_refuses_to_sample(ask, saved):
    """It can foresee only what is likeliest; that was found out after the model was loaded."""
    path = saved()
    for prompts in (["How many?"], ["How many? How many? How many?", "Who is it?"]):
        plain = ask(GPTFT, "generate", path, *prompts, "--max_new_tokens", "30")
        assert ask(GPTFT, "generate", path, *prompts, "--max_new_tokens", "30", "--lookup") == plain and plain[1]
    status, out, err = ask(GPTFT, "generate", "no/such/model", "How many?", "--lookup", "--temperature", "0.5")
    assert status == 2 and out == ""
    is_one_line(err, "--lookup foresees the likeliest tokens alone: it needs --temperature 0")


def test_on_a_terminal_it_is_said_how_fast_the_answers_came(ask, saved, monkeypatch):
    """Standard output has the responses alone, whatever is said beside them."""
    path = saved()
    plain = ask(GPTFT, "generate", path, "How many?", "--max_new_tokens", "6")
    monkeypatch.setattr("gptft.text.pace.on_a_terminal", lambda: True)
    for words in ([], ["--lookup", "false"], ["--temperature", "0.5"]):
        _, out, err = ask(GPTFT, "generate", path, "How many?", "--max_new_tokens", "6", *words)
        assert re.fullmatch(r"first token after \d+\.\d\d s, then \d+\.\d tokens a second \(6 in \d+\.\d s\)\n", err)
        assert words[:1] == ["--temperature"] or out == plain[1]


def test_generate_says_what_is_wrong_with_a_prompt(ask, saved):
    path = saved()
    status, out, err = ask(GPTFT, "generate", path, stdin="\n \n")
    assert status == 2 and out == ""
    is_one_line(err, "there is no prompt")
    status, out, err = ask(GPTFT, "generate", path, "word " * 300)
    assert status == 2 and out == ""
    is_one_line(err, "the model's block_size is 256")
    status, out, err = ask(GPTFT, "generate", path, "word " * 300, "--max_input_tokens", "20", "--max_new_tokens", "2")
    assert status == 0 and err == ""
    write("mine.toml", 'prompt = "Q: {instruction}\\nA: "')
    status, out, err = ask(GPTFT, "generate", path, "Add.", "--input", "1 2", "--template", "mine.toml")
    assert status == 2 and out == ""
    is_one_line(err, "a text for 'input', for which the template 'mine' has no place")


def test_prompts_that_are_no_utf8_do_not_end_in_a_traceback(saved):
    done = subprocess.run(
        [*GPTFT, "generate", saved(), "--max_new_tokens", "2"], input=b"caf\xe9\n", capture_output=True
    )
    assert done.returncode == 0 and done.stderr == b""
