"""Answer prompts from the command line, or from standard input, a prompt a line."""

from __future__ import annotations

import sys
from argparse import Namespace

from gptft.commands.common import add_decoding, add_model, load_model
from gptft.commands.parser import Parser, true_or_false
from gptft.config import resolve
from gptft.errors import UserError
from gptft.text.pace import Pace


def add_arguments(parser: Parser) -> None:
    """The model, the prompts and how they are answered."""
    add_model(parser)
    parser.add_argument("prompts", nargs="*", help="the prompts; none: read from standard input")
    group = parser.group("prompts")
    group.add_argument("--input", default="", help="the input that goes with the instruction")
    group.add_argument(
        "--raw",
        nargs="?",
        type=true_or_false,
        const=True,
        default=False,
        help="send the prompt as it is, without the template [false]",
    )
    add_decoding(parser)
    parser.group("decoding").add_argument(
        "--lookup",
        nargs="?",
        type=true_or_false,
        const=True,
        help="greedily, one prompt after the other: faster where responses repeat their prompts [of a single prompt]",
    )


def run(options: Namespace) -> None:
    """Print a response for each prompt."""
    config = resolve("", options.settings)
    prompts = options.prompts or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not prompts:
        raise UserError("there is no prompt")
    if options.lookup and options.temperature > 0:
        raise UserError("--lookup foresees the likeliest tokens alone: it needs --temperature 0")
    model, tokenizer = load_model(options, config.device)
    if options.input:
        prompts = [{"instruction": prompt, "input": options.input} for prompt in prompts]
    from gptft.decoding import Sampling
    from gptft.fast.decoding_model import arranged
    from gptft.fast.lookup import rows_in_a_pass, takes_lookup
    from gptft.generation import BATCH, respond

    lookup = takes_lookup(options.lookup, model, len(prompts), options.temperature, options.decode, lowered=False)
    rows = 1 if lookup else min(len(prompts), BATCH)
    at_once = rows_in_a_pass(options.decode) if lookup else rows
    passes = options.max_new_tokens * -(-len(prompts) // rows)
    model = arranged(model, options.decode, at_once, passes, take=True)
    pace = Pace()
    responses = respond(
        model,
        tokenizer,
        prompts,
        options.max_new_tokens,
        options.raw,
        options.max_input_tokens,
        sampling=Sampling(options.temperature, options.top_k, options.top_p, options.seed),
        lookup=lookup,
        decode="plain",  # as it is by now
        pace=pace,
    )
    for response in responses:
        print(response.text)
    pace.show()
