"""`python -m gptft chat`: a conversation is remembered, and outlives a prompt that is too long."""

from cli import GPTFT

from gptft import generation, loading


def turn(role, content):
    return {"role": role, "content": content}


def test_chat_remembers_the_conversation_and_forgets_it_on_demand(ask, saved):
    path = saved(template="chatml")
    model, tokenizer = loading.load(path)

    def reply(*turns):
        return generation.generate(model, tokenizer, [list(turns)], 6)[0]

    first = reply(turn("user", "hi"))
    history = [turn("user", "hi"), turn("assistant", first), turn("user", "again")]
    second, fresh = reply(*history), reply(turn("user", "again"))
    assert second != fresh  # else the test could not tell whether anything is remembered
    status, out, err = ask(
        GPTFT, "chat", path, "--max_new_tokens", "6", stdin="hi\nagain\n/new\nagain\n\nnever asked\n"
    )
    assert (status, err) == (0, "")
    assert out == f"{first}\n{second}\n{fresh}\n"


def test_chat_with_a_template_of_single_turns_answers_each_alone(ask, saved):
    path = saved(template="alpaca")
    model, tokenizer = loading.load(path)
    expected = generation.generate(model, tokenizer, ["hi", "again"], 6)
    status, out, _ = ask(GPTFT, "chat", path, "--max_new_tokens", "6", stdin="hi\nagain\n")
    assert status == 0 and out == "".join(text + "\n" for text in expected)


def test_chat_says_on_a_terminal_how_fast_each_answer_came(ask, saved, monkeypatch):
    path = saved(template="alpaca")
    monkeypatch.setattr("gptft.text.pace.on_a_terminal", lambda: True)
    for words in ([], ["--temperature", "0.5"]):
        _, _, err = ask(GPTFT, "chat", path, "--max_new_tokens", "6", *words, stdin="hi\nagain\n")
        assert [line.startswith("first token after 0.") for line in err.splitlines()] == [True, True]


def test_chat_samples_what_generate_samples(ask, saved):
    path, drawn = saved(template="alpaca"), ("--max_new_tokens", "12", "--temperature", "1.5", "--seed", "3")
    _, expected, _ = ask(GPTFT, "generate", path, "hi", *drawn)
    assert ask(GPTFT, "chat", path, *drawn, stdin="hi\n")[1] == expected and expected.strip()


def test_chat_goes_on_after_a_prompt_that_is_too_long(ask, saved):
    path = saved(template="chatml")
    model, tokenizer = loading.load(path)
    expected = generation.generate(model, tokenizer, [[turn("user", "hi")]], 6)[0]
    status, out, err = ask(GPTFT, "chat", path, "--max_new_tokens", "6", stdin="word " * 300 + "\nhi\n")
    assert status == 0 and "block_size is 256" in err and out == expected + "\n"
