"""Talk with a model; an empty line or Ctrl-D ends it, /new starts a new conversation."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Iterator

from gptft.commands.common import add_decoding, add_model, load_model
from gptft.commands.parser import Parser
from gptft.config import resolve
from gptft.errors import BadRecord, UserError
from gptft.text.pace import Pace


def add_arguments(parser: Parser) -> None:
    """The model, and how it answers."""
    add_model(parser)
    add_decoding(parser)


def run(options: Namespace) -> None:
    """Answer line by line, each token as it comes; with a template of several turns the conversation is remembered."""
    config = resolve("", options.settings)
    model, tokenizer = load_model(options, config.device)
    from gptft.decoding import Sampling
    from gptft.fast.continuous import decode_continuously
    from gptft.fast.decoding_model import arranged
    from gptft.fast.lookup import decode_with_lookup, rows_in_a_pass, takes_lookup
    from gptft.generation import prompt_ids, stop_ids

    lookup = takes_lookup(None, model, 1, options.temperature, options.decode, lowered=False)
    model = arranged(model, options.decode, rows_in_a_pass(options.decode) if lookup else 1, take=True)
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
            asked, pace = (model, [ids], options.max_new_tokens, stop_ids(tokenizer), tokenizer.n_vocab), Pace()
            if lookup:
                passes = decode_with_lookup(*asked, holes=tokenizer.holes)
            else:
                passes = decode_continuously(*asked, sampling, holes=tokenizer.holes)
            text, lead_due = "", lead
            for piece in tokenizer.stream(tokens_of(passes, pace), after=ids[-1]):
                piece, lead_due = piece.removeprefix(lead_due), ""
                text += piece
                print(piece, end="", flush=True)
            print()
            pace.show()
        except (UserError, BadRecord) as error:
            more = "; /new starts a new conversation" if len(history) > 1 else ""
            print(f"gptft: {error}{more}", file=sys.stderr)
            history = history[:-1]
            continue
        answered = {"role": "assistant", "content": text.removesuffix(template.tail if template else "")}
        history = [*history, answered] if multi_turn else []


def tokens_of(passes: Iterator[list[tuple[int, int]]], pace: Pace) -> Iterator[int]:
    """The ids of one answer, one by one as they come; `pace` notes when."""
    for pairs in passes:
        pace.note(len(pairs))
        for _, token in pairs:
            yield token
