"""How fast an answer comes: said on a terminal, and nowhere else."""

from gptft.text.pace import Pace


def clock(*times):
    return iter(times).__next__


def test_the_wait_for_the_first_token_and_the_rate_of_the_others():
    """Three rows get their first tokens together after half a second, then seven tokens come in two."""
    pace = Pace(clock(10.0, 10.5, 11.5, 12.5))
    for tokens in (3, 3, 4):
        pace.note(tokens)
    assert str(pace) == "first token after 0.50 s, then 3.5 tokens a second (10 in 2.5 s)"


def test_an_answer_of_one_token_or_none_has_no_rate():
    pace = Pace(clock(0.0, 0.25))
    assert str(pace) == "no token came"
    pace.note(1)
    assert str(pace) == "first token after 0.25 s (1 in 0.2 s)"


def test_it_is_said_on_a_terminal_alone(capsys, monkeypatch):
    """What `generate` prints is read by other programs; a log is no terminal either."""
    pace = Pace(clock(0.0, 1.0))
    pace.note(1)
    pace.show()
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr("gptft.text.pace.on_a_terminal", lambda: True)
    pace.show()
    assert capsys.readouterr() == ("", "first token after 1.00 s (1 in 1.0 s)\n")
