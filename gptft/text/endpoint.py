"""One client for servers that speak OpenAI's protocol: a conversation goes in, an answer comes out, or one clear error.

What passes is tried again after a growing wait: time-outs, broken connections, 429, 5xx, and answers that are none.
What does not (a wrong key, an unknown model) ends it at once; where others were answered, a request that the server
refuses is an error of its own.
"""

from __future__ import annotations

import os
import time
from typing import NamedTuple

from gptft.errors import UserError, need_extra
from gptft.text.printable import whole_characters

KEY = "OPENAI_API_KEY"  # the variable of the environment that holds the key
TRIES = 6
LONGEST_WAIT = 60.0  # seconds


class Answer(NamedTuple):
    """What a model said, the tokens that it cost, prompt and answer, and whether it came to its end."""

    text: str
    tokens: int
    finished: bool


class Nonsense(Exception):
    """A reply that is no answer; the message says what it is."""


class Refused(Exception):
    """A conversation that the model cannot take, a text that is too long for one; others may pass."""


class Failing(UserError):
    """The server fails again and again: for this conversation, or for all of them."""


class Endpoint:
    """A model behind a URL. `budget`: tokens that may be used in all; 0: as many as it takes. `flag`: what named it.
    `patience`: after so many refusals without a single answer it is taken to refuse everything."""

    def __init__(
        self,
        url: str,
        model: str,
        budget: int = 0,
        timeout: float = 120.0,
        tries: int = TRIES,
        flag: str = "--endpoint",
        patience: int = 1,
    ) -> None:
        self.flag, self.patience, self.refusals = flag, patience, 0
        try:
            import openai
        except ImportError:
            raise need_extra("openai", "make", f"{flag} {url}") from None
        if not url.startswith(("http://", "https://")):
            raise UserError(f"{flag} {url}: a URL begins with http:// or https://")
        self.url, self.model, self.budget, self.tries, self.used = url, model, budget, tries, 0
        self.answered = False  # ever, perhaps in an earlier run: so what it refuses is the conversation
        self.openai = openai
        # servers of one's own ask for no key, and the client insists on one
        key = os.environ.get(KEY) or "none"
        self.client = openai.OpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=0)

    @property
    def name(self) -> str:
        return f"{self.model} at {self.url}"

    def answer(self, messages: list[dict], max_tokens: int, temperature: float = 0.0, seed: int = 0) -> Answer:
        """The answer to a conversation. Raises Refused where the server has answered others and refuses this one;
        Failing where it fails again and again, and UserError where it refuses everything or the budget is used up."""
        if self.budget and self.used >= self.budget:
            raise UserError(f"the budget of {self.budget:,} tokens is used up", 1)
        messages = [{**message, "content": whole_characters(message["content"])} for message in messages]
        wait = 1.0
        for number in range(1, self.tries + 1):
            try:
                return self._ask(messages, max_tokens, temperature, seed)
            except (self.openai.APIConnectionError, self.openai.InternalServerError, Nonsense) as error:
                problem, asked = error, 0.0
            except self.openai.RateLimitError as error:
                problem, asked = error, _retry_after(error)
            except self.openai.APIStatusError as error:
                self.refusals += 1
                known = self.answered or self.refusals < self.patience
                if known and error.status_code in (400, 413, 422):
                    raise Refused(f"{error.status_code}: {_one_line(error)}") from None
                raise UserError(f"{self.flag} {self.url}: {error.status_code}: {_one_line(error)}", 1) from None
            except (self.openai.APIError, ValueError) as error:  # a reply that is no JSON
                problem, asked = error, 0.0
            if number < self.tries:
                time.sleep(min(max(wait, asked), LONGEST_WAIT))
                wait *= 2
        raise Failing(f"{self.flag} {self.url}: {_one_line(problem)}, {self.tries} times in a row", 1)

    def _ask(self, messages: list[dict], max_tokens: int, temperature: float, seed: int) -> Answer:
        reply = self.client.chat.completions.create(
            model=self.model, messages=messages, max_tokens=max_tokens, temperature=temperature, seed=seed
        )
        choices = getattr(reply, "choices", None)
        text = getattr(choices[0].message, "content", None) if choices else None
        cut = bool(choices) and choices[0].finish_reason == "length"
        if text is None and cut:  # all its tokens went into thinking, which servers may keep apart
            text = ""
        if not isinstance(text, str):
            raise Nonsense("the reply holds no answer")
        usage = getattr(reply, "usage", None)
        # a server that does not count is taken to use a token for every four bytes, which is rather too many
        said = sum(len(message["content"].encode()) for message in messages) + len(text.encode())
        tokens = getattr(usage, "total_tokens", None) or said // 4 + 1
        self.used, self.answered = self.used + tokens, True
        return Answer(text, tokens, not cut)


def _retry_after(error) -> float:
    """The seconds that a server asks to wait; 0 where it does not say."""
    try:
        return float(error.response.headers.get("retry-after", 0))
    except ValueError:
        return 0.0


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
