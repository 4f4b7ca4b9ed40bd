"""The client for OpenAI-like endpoints against a small real server that misbehaves in every way that servers do."""

import pytest
from chat_server import ChatServer

from gptft.errors import UserError
from gptft.text import endpoint
from gptft.text.endpoint import Endpoint

ASKED = [{"role": "user", "content": "Why?"}]


@pytest.fixture
def server():
    with ChatServer() as server:
        yield server


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """What would be waited is noted, and not waited."""
    waited = []
    monkeypatch.setattr(endpoint.time, "sleep", waited.append)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return waited


def ask(server, **settings):
    return Endpoint(server.url, "toy", timeout=0.5, **settings).answer(ASKED, 20, 0.3, 7)


def test_the_request_is_what_the_protocol_says_and_the_answer_comes_back(server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    answer = ask(server)
    assert answer.text == "answer 1 to: Why?" and answer.tokens == 12 and answer.finished
    (request,) = server.requests
    assert request["body"] == {
        "model": "toy",
        "messages": ASKED,
        "max_tokens": 20,
        "temperature": 0.3,
        "seed": 7,
    }
    assert request["authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    "fault", ["429", "500", "503", "slow", "cut", "no json", "no choices", "null", "closed", "no content"]
)
def test_what_passes_is_tried_again(server, no_waiting, fault):
    server.faults = [fault, fault]
    assert ask(server).text == "answer 1 to: Why?"
    assert len(server.requests) == 3 and len(no_waiting) == 2
    assert no_waiting == ([7.0, 7.0] if fault == "429" else [1.0, 2.0])  # 429 says how long


@pytest.mark.parametrize("fault", ["429", "500", "slow", "cut", "no json", "no choices"])
def test_what_does_not_pass_is_one_line_with_the_number_of_tries(server, no_waiting, fault):
    server.faults = [fault] * 9
    with pytest.raises(UserError, match="3 times in a row") as caught:
        ask(server, tries=3)
    assert "\n" not in str(caught.value) and server.url in str(caught.value) and len(server.requests) == 3


@pytest.mark.parametrize("fault", ["400", "401", "404"])
def test_what_cannot_pass_ends_it_at_once(server, no_waiting, fault):
    server.faults = [fault] * 9
    with pytest.raises(UserError, match=fault):
        ask(server)
    assert len(server.requests) == 1 and not no_waiting


def test_the_budget_is_kept(server):
    asked = Endpoint(server.url, "toy", budget=20)
    asked.answer(ASKED, 20)
    asked.answer(ASKED, 20)
    with pytest.raises(UserError, match="the budget of 20 tokens is used up"):
        asked.answer(ASKED, 20)
    assert len(server.requests) == 2 and asked.used == 24


def test_an_answer_that_was_cut_says_so_and_tokens_are_counted_without_a_server_that_does(server):
    server.faults = ["length", "no usage"]
    assert not ask(server).finished
    assert ask(server).tokens == (4 + len("answer 2 to: Why?")) // 4 + 1


def test_an_answer_that_ended_before_its_thoughts_did_is_cut_and_not_asked_for_again(server):
    """vLLM keeps thoughts apart: of few tokens nothing is left for the content, which is null."""
    server.faults = ["all thought"]
    assert ask(server) == ("", 12, False) and len(server.requests) == 1


def test_a_url_that_is_none_and_a_server_that_is_not_there(no_waiting):
    with pytest.raises(UserError, match="a URL begins with http"):
        Endpoint("localhost:1", "toy")
    with pytest.raises(UserError, match="2 times in a row"):
        Endpoint("http://127.0.0.1:9/v1", "toy", tries=2).answer(ASKED, 5)
