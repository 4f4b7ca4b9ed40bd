"""A model in EleutherAI's harness (lm-eval, extra `eval`): its tasks, its prompts, its scores, asked of our model.

The harness speaks in flat texts. Special tokens that they name are special tokens, as in the harness's own Hugging Face
model, for its chat prompts are such texts; so its tasks must be trusted not to be written by an enemy.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from gptft.decoding import Sampling
from gptft.device import Precision
from gptft.errors import UserError, need_extra
from gptft.generation import log_likelihoods, respond
from gptft.model import GPT
from gptft.text.progress import progress
from gptft.text.segments import Segment
from gptft.tokenizer import Tokenizer

NEW_TOKENS = 256  # of a response where the task names no number, as the harness has it


def harness_model(model: GPT, tokenizer: Tokenizer, batch_size: int = 16, precision: Precision | None = None):
    """The model as an `lm_eval.api.model.LM`; `batch_size` requests at once."""
    try:
        from lm_eval.api.model import TemplateLM
    except ImportError:
        raise need_extra("lm_eval", "eval", "--tasks") from None

    class Model(Answers, TemplateLM):
        """What the harness asks, answered by ours; encoding pairs and empty contexts is the harness's own."""

    return Model(model, tokenizer, batch_size, precision)


class Answers:
    """The harness's questions to a model: log-likelihoods of continuations and of whole texts, and answers."""

    def __init__(self, model: GPT, tokenizer: Tokenizer, batch_size: int, precision: Precision | None) -> None:
        super().__init__()
        self.model, self.vocabulary, self.batch_size, self.precision = model, tokenizer, batch_size, precision
        self.bos_name = next((name for name, i in tokenizer.specials.items() if i == tokenizer.bos), None)

    @property
    def eot_token_id(self) -> int:
        return self.vocabulary.eot

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text whose first token is to be measured."""
        return min(self.vocabulary.beginnings, default=self.vocabulary.eot)

    @property
    def max_length(self) -> int:
        return self.model.config.block_size

    @property
    def tokenizer_name(self) -> str:  # part of the name under which the harness caches requests
        return self.vocabulary.digest[:16]

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_) -> list[int]:
        ids = flat_ids(self.vocabulary, string)
        added = self.bos_name is not None and not string.startswith(self.bos_name)
        return ids[1:] if add_special_tokens is False and added else ids

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **_) -> list[tuple[float, bool]]:
        """`requests`: ((context, continuation), their ids). The start of what is too long is cut."""
        pairs = []
        for _, context, continuation in requests:
            context = (context + continuation)[-(self.max_length + 1) :][: -len(continuation)]
            pairs.append((context, continuation))
        order = sorted(range(len(pairs)), key=lambda n: (-len(pairs[n][0]), pairs[n][0]))
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        with progress(total=len(pairs), quiet=disable_tqdm, desc="log-likelihoods", unit="continuations") as bar:
            for chosen in together(order, [context for context, _ in pairs], 8 * self.batch_size):
                asked = [pairs[n] for n in chosen]
                measured = log_likelihoods(self.model, asked, self.batch_size, self.precision)
                for n, likelihood in zip(chosen, measured, strict=True):
                    found[n] = tuple(likelihood)
                    if requests[n][0] is not None:
                        self.cache_hook.add_partial("loglikelihood", requests[n][0], found[n])
                bar.update(len(chosen))
        return found

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, in windows of the model's length, each token measured once."""
        from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

        totals = []
        for (text,) in progress([request.args for request in requests], quiet=disable_tqdm, unit="texts"):
            windows = get_rolling_token_windows(self.tok_encode(text), self.prefix_token_id, self.max_length, 1)
            parts = [(None, *make_disjoint_window(window)) for window in windows]
            totals.append(sum(value for value, _ in self._loglikelihood_tokens(parts, True)))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), totals[-1])
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Answers that end at what the task names; requests of the same settings go together."""
        asked = [request.args for request in requests]
        order = sorted(range(len(asked)), key=lambda n: (repr(asked[n][1]), -len(asked[n][0])))
        texts = [""] * len(asked)
        with progress(total=len(asked), quiet=disable_tqdm, desc="answers", unit="answers") as bar:
            for _, same in itertools.groupby(order, lambda n: repr(asked[n][1])):
                numbers = list(same)
                for start in range(0, len(numbers), 8 * self.batch_size):  # who waits enters as others end
                    chosen = numbers[start : start + 8 * self.batch_size]
                    answers = self._generate([asked[n][0] for n in chosen], asked[chosen[0]][1], chosen)
                    for n, text in zip(chosen, answers, strict=True):
                        texts[n] = text
                        self.cache_hook.add_partial("generate_until", asked[n], text)
                    bar.update(len(chosen))
        return texts

    def _generate(self, contexts: Sequence[str], settings: dict, numbers: Sequence[int]) -> list[str]:
        """`numbers`: of the contexts among all, so that each draws its own random numbers, in whatever batch."""
        from lm_eval.models.utils import normalize_gen_kwargs

        settings = normalize_gen_kwargs(settings, NEW_TOKENS)
        new = settings["max_gen_toks"]
        if not 0 < new < self.max_length:
            raise UserError(f"the task asks for {new} new tokens, and the model reads {self.max_length} in all")
        sampling = Sampling()
        if settings["do_sample"]:
            temperature = settings.get("temperature") or 1.0
            sampling = Sampling(temperature, settings.get("top_k") or 0, settings.get("top_p") or 1.0)
        made = respond(
            self.model,
            self.vocabulary,
            [flat_ids(self.vocabulary, text)[-(self.max_length - new) :] for text in contexts],
            new,
            raw=True,
            batch_size=self.batch_size,
            sampling=sampling,
            precision=self.precision,
            until=[end for end in settings["until"] if end],
            numbers=numbers,
        )
        # the harness decodes a response as a text of its own, which has no space put before it
        stripped = self.vocabulary.engine.strips
        return [response.text.removeprefix(" ") if stripped else response.text for response in made]

    def apply_chat_template(self, chat_history: list[dict], add_generation_prompt: bool = True) -> str:
        """The conversation as the checkpoint's template writes it; not yet answered, or with the last answer left open
        to be gone on with."""
        template = self.vocabulary.template
        if template is None:
            raise UserError("--apply_chat_template: the model has no prompt template")
        last = chat_history[-1] if chat_history[-1]["role"] == "assistant" else None
        prompt = flat_text(self.vocabulary, template.prompt_segments({"messages": chat_history}))
        return prompt if add_generation_prompt or last is None else prompt + template.lead + last["content"]

    def chat_template(self, chat_template: bool | str = False) -> str:
        """What stands for the template in the harness's own files."""
        return repr(self.vocabulary.template.to_dict()) if chat_template and self.vocabulary.template else ""


def flat_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """A text in which special tokens are named, with the vocabulary's beginning-of-text once."""
    return tokenizer.encode_segments([Segment(text, False, "template")])[0]


def flat_text(tokenizer: Tokenizer, segments: Sequence[Segment]) -> str:
    """What segments say, special tokens by their names."""
    names = {i: name for name, i in tokenizer.specials.items()}
    return "".join(piece if isinstance(piece, str) else names[piece] for piece, _ in tokenizer.pieces(segments))


def together(order: Sequence[int], keys: Sequence, size: int) -> list[list[int]]:
    """Numbers in batches of `size` and more: those with one key stay in one."""
    batches: list[list[int]] = []
    for n in order:
        if not batches or (len(batches[-1]) >= size and keys[batches[-1][-1]] != keys[n]):
            batches.append([])
        batches[-1].append(n)
    return batches
