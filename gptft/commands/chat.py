"""Talk with a model; an empty line or Ctrl-D ends it, /new starts a new conversation."""

from __future__ import annotations

import sys
from argparse import Namespace

from gptft.commands.common import add_decoding, add_model, load_model
from gptft.commands.parser import Parser
from gptft.config import resolve
from gptft.errors import BadRecord, UserError


def add_arguments(parser: Parser) -> None:
    """The model, and how it answers."""
    add_model(parser)
    add_decoding(parser)


def run(options: Namespace) -> None:
    """Answer line by line, each token as it comes; with a template of several turns the conversation is remembered."""
    config = resolve("", options.settings)
    model, tokenizer = load_model(options, config.device)
    from gptft.decoding import Sampling, decode
    from gptft.fast.decoding_model import arranged
    from gptft.generation import prompt_ids, stop_ids

    model = arranged(model, options.decode, take=True)
    template = tokenizer.template
    multi_turn = template is not None and template.multi_turn
    sampling = Sampling(options.temperature, options.top_k, options.top_p, options.seed)
    lead = template.lead if template else ""
    history: list[dict] = []
    interactive = sys.stdin.isatty()
    while True:
        try:
            line = input("you> " if interactive else "")
        except EOFError:
            break
        if not line.strip():
            break
        if line.strip() == "/new":
            history = []
            continue
        history = [*history, {"role": "user", "content": line}] if multi_turn else []
        try:
            ids = prompt_ids(tokenizer, history if multi_turn else line, max_input_tokens=options.max_input_tokens)
            ends = stop_ids(tokenizer), tokenizer.n_vocab
            stream = decode(model, [ids], options.max_new_tokens, *ends, sampling, holes=tokenizer.holes)
            text, lead_due = "", lead
            for piece in tokenizer.stream((pairs[0][1] for pairs in stream), after=ids[-1]):
                piece, lead_due = piece.removeprefix(lead_due), ""
                text += piece
                print(piece, end="", flush=True)
            print()
        except (UserError, BadRecord) as error:
            more = "; /new starts a new conversation" if len(history) > 1 else ""
            print(f"gptft: {error}{more}", file=sys.stderr)
            history = history[:-1]
            continue
        answered = {"role": "assistant", "content": text.removesuffix(template.tail if template else "")}
        history = [*history, answered] if multi_turn else []
