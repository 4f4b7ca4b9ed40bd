"""The commands: train, generate, chat, evaluate, inspect, prepare. `python -m gptft COMMAND --help` explains each."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Iterable

from gptft.config import FIELDS, help_text, parse_arguments, resolve
from gptft.files import UserError, atomic_write, json_line, nearest
from gptft.prompts import BadRecord

TRAIN_USAGE = "usage: python train.py [--config FILE.toml] [--FIELD VALUE ...]"


def run(command: Callable[[list[str]], None], argv: list[str] | None = None) -> None:
    """Run a command; what the user can put right becomes one line on standard error and an exit status."""
    for stream in (sys.stdin, sys.stdout):  # an odd character must not end a run that is nearly done
        with contextlib.suppress(AttributeError, OSError):  # a stream that is no text file has no such method
            stream.reconfigure(errors="replace")
    try:
        command(sys.argv[1:] if argv is None else argv)
    except UserError as error:
        print(f"gptft: {error}", file=sys.stderr)
        sys.exit(error.status)
    except BadRecord as error:  # a prompt for which the checkpoint's template has no place
        print(f"gptft: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("gptft: interrupted", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader, `head` for one, has had enough
        sys.stdout = open(os.devnull, "w")
        sys.exit(0)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"gptft: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(1)


def command_train(argv: list[str]) -> None:
    """Fine-tune; with no config, data or init, the embedded default."""
    if "--help" in argv or "-h" in argv:
        print(help_text(TRAIN_USAGE + "\n\nWith no config, data or init it runs the embedded default."))
        return
    config_path, given = parse_arguments(argv)
    if given.get("resume") and not config_path and given.get("out_dir"):
        earlier = os.path.join(given["out_dir"], "config.toml")
        is_default = os.path.isdir(os.path.join(given["out_dir"], "pretrain"))  # two stages, gone on with as two
        if os.path.exists(earlier) and not is_default:
            config_path = earlier  # the run's own settings; flags still win
    default = not (config_path or given.get("data") or given.get("init"))
    # checked before torch is imported, so that a misspelt value is answered at once
    config = resolve(config_path, given)
    from gptft.finetuning import embedded_default, finetune

    if default:
        embedded_default(given)
    else:
        finetune(config)


class Parser(argparse.ArgumentParser):
    """argparse with our errors: one line, the nearest valid name, exit status 2."""

    def __init__(self, **options) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> None:
        prefix = "unrecognized arguments: "
        if message.startswith(prefix):
            word = message.removeprefix(prefix).split()[0]
            message = f"unknown argument {word}{nearest(word, self._option_string_actions)}"
        raise UserError(message)


def whole(least: int) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `least`."""

    def convert(word: str) -> int:
        if not word.lstrip("-").isdecimal() or int(word) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, not {word!r}")
        return int(word)

    return convert


def add_sampling(parser: Parser) -> None:
    parser.add_argument("--max_new_tokens", type=whole(1), default=100, help="longest response, tokens [100]")
    parser.add_argument("--max_input_tokens", type=whole(0), default=0,
                        help="cut the start of longer prompts; 0: refuse those beyond block_size")  # fmt: skip
    parser.add_argument("--temperature", type=float, default=0.0, help="0: greedy [0]")
    parser.add_argument("--top_k", type=whole(0), default=0, help="draw among the k likeliest tokens; 0: all")
    parser.add_argument("--top_p", type=float, default=1.0, help="draw among the fewest tokens that reach p [1]")
    parser.add_argument("--seed", type=whole(0), default=0, help="seed of the draws [0]")
    add_device(parser)


def add_device(parser: Parser) -> None:
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:N or mps [auto]")
    parser.add_argument("--template", default="", help="prompt template; empty: the checkpoint's own")


def add_reading(parser: Parser) -> None:
    parser.add_argument("--fields", nargs="+", default=[], help="which key plays which part, as for training")
    parser.add_argument("--bad_records", default="stop", help="stop, or drop: as for training [stop]")


def load_model(options, parts: Iterable[str] = ()):
    """Model and tokenizer for a command that asks one. `parts`: those named with --fields, besides the usual."""
    from gptft.checkpoint import load
    from gptft.optim import pick_device
    from gptft.prompts import load_template

    template = load_template(options.template, parts) if options.template else None
    model, tokenizer = load(options.model, pick_device(options.device))
    if tokenizer is None:
        raise UserError(f"{options.model} has no tokenizer")
    if template:
        tokenizer.template = template
    return model, tokenizer


def command_generate(argv: list[str]) -> None:
    """Answer prompts from the command line, or from standard input, a prompt a line."""
    parser = Parser(prog="python -m gptft generate", description=command_generate.__doc__)
    parser.add_argument("model", help="a checkpoint, a run's folder, a Hugging Face directory or a hub id")
    parser.add_argument("prompts", nargs="*", help="the prompts; none: read from standard input")
    parser.add_argument("--input", default="", help="the input that goes with the instruction")
    parser.add_argument("--raw", action="store_true", help="send the prompt as it is, without the template")
    add_sampling(parser)
    options = parser.parse_args(argv)
    prompts = options.prompts or [line.rstrip("\n") for line in sys.stdin if line.strip()]
    if not prompts:
        raise UserError("there is no prompt")
    model, tokenizer = load_model(options)
    if options.input:
        prompts = [{"instruction": prompt, "input": options.input} for prompt in prompts]
    from gptft.decoding import generate

    responses = generate(model, tokenizer, prompts, options.max_new_tokens, options.raw, options.max_input_tokens,
                         temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
                         seed=options.seed)  # fmt: skip
    for response in responses:
        print(response)


def command_chat(argv: list[str]) -> None:
    """Talk with a model; an empty line or Ctrl-D ends it, /new starts a new conversation."""
    parser = Parser(prog="python -m gptft chat", description=command_chat.__doc__)
    parser.add_argument("model", help="a checkpoint, a run's folder, a Hugging Face directory or a hub id")
    add_sampling(parser)
    options = parser.parse_args(argv)
    model, tokenizer = load_model(options)
    from gptft.decoding import Sampling, decode, prompt_ids, stop_of

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
            stream = decode(model, [ids], options.max_new_tokens, stop_of(tokenizer), tokenizer.n_vocab, sampling)
            text, lead_due = "", lead
            for piece in tokenizer.stream(pairs[0][1] for pairs in stream):
                piece, lead_due = piece.removeprefix(lead_due), ""
                text += piece
                print(piece, end="", flush=True)
            print()
        except UserError as error:
            print(f"gptft: {error}" + ("; /new starts a new conversation" if len(history) > 1 else ""))
            history = history[:-1]
            continue
        history = [*history, {"role": "assistant", "content": text}] if multi_turn else []


def command_evaluate(argv: list[str]) -> None:
    """Measure a model on data: loss a target, and the share of responses that are exactly as expected."""
    parser = Parser(prog="python -m gptft evaluate", description=command_evaluate.__doc__)
    parser.add_argument("model", help="a checkpoint, a run's folder, a Hugging Face directory or a hub id")
    parser.add_argument("--data", nargs="+", required=True, help="files to measure on")
    parser.add_argument("--samples", type=whole(0), default=100, help="records to answer; 0: none [100]")
    parser.add_argument("--batch_size", type=whole(1), default=16, help="examples a batch; changes no result [16]")
    parser.add_argument("--max_new_tokens", type=whole(1), default=100, help="longest response, tokens [100]")
    add_reading(parser)
    add_device(parser)
    options = parser.parse_args(argv)
    config = resolve("", {"data": options.data, "val_fraction": 0.0, "test_fraction": 0.0, "init": options.model,
                          "template": options.template or "auto", "fields": options.fields,
                          "bad_records": options.bad_records})  # fmt: skip
    from gptft.evaluation import answer, evaluate_loss, is_exact, prompt_and_expected
    from gptft.finetuning import check_inputs, load_data
    from gptft.loss import Objective
    from gptft.optim import Precision
    from gptft.report import describe_ledger

    check_inputs(config)
    model, tokenizer = load_model(options, config.fields)
    datasets, (examples, _, _) = load_data(config, model, tokenizer)
    print(describe_ledger("data", datasets["data"].ledger))
    loss = evaluate_loss(Objective(model), examples, options.batch_size, tokenizer.eot,
                         Precision("fp32", model.device))  # fmt: skip
    print(f"loss {loss:.4f} nats a target, over {len(examples):,} examples")
    asked = range(min(options.samples, len(examples)))
    pairs = [prompt_and_expected(record, config.fields) for record in examples.records(asked)]
    pairs = [pair for pair in pairs if pair]
    if pairs:
        responses = answer(model, tokenizer, [prompt for prompt, _ in pairs], options.max_new_tokens,
                           model.config.block_size, options.batch_size)  # fmt: skip
        right = sum(is_exact(text, expected) for text, (_, expected) in zip(responses, pairs, strict=True))
        print(f"exact match {right / len(pairs):.1%}, over the first {len(pairs):,} records")


def command_inspect(argv: list[str]) -> None:
    """Show examples token by token: what is masked and what is a target, from the tensors that the loss receives."""
    parser = Parser(prog="python -m gptft inspect", description=command_inspect.__doc__)
    parser.add_argument("--data", nargs="+", required=True, help="files, as for training")
    parser.add_argument("--init", default=FIELDS["init"].default, help="the model whose tokenizer is used [gpt2]")
    parser.add_argument("--row", type=whole(0), default=None, help="one example, by number from 0, with its ids")
    parser.add_argument("--rows", type=whole(1), default=3, help="how many examples, collated as one batch [3]")
    parser.add_argument("--html", default="", help="write a page to this file instead")
    parser.add_argument("--template", default="auto", help="prompt template [auto]")
    parser.add_argument("--max_length", type=int, default=0, help="longest example, tokens; 0: block_size")
    parser.add_argument("--truncation", default="right", help="right, left or drop [right]")
    parser.add_argument("--mask_prompt", nargs="?", const="true", default="true", help="true or false [true]")
    add_reading(parser)
    options = parser.parse_args(argv)
    names = ("data", "init", "template", "max_length", "truncation", "mask_prompt", "fields", "bad_records")
    config = resolve("", {name: getattr(options, name) for name in names} | {"val_fraction": 0, "test_fraction": 0})
    from gptft import viewer
    from gptft.collate import collate
    from gptft.finetuning import check_inputs, load_data, load_start
    from gptft.report import describe_ledger

    check_inputs(config)
    model, tokenizer = load_start(config)
    datasets, (examples, _, _) = load_data(config, model, tokenizer)
    chosen = range(min(options.rows, len(examples))) if options.row is None else [options.row]
    if options.row is not None and options.row >= len(examples):
        raise UserError(f"--row {options.row}: there are {len(examples)} examples, numbered from 0")
    batch = collate([examples[i] for i in chosen], tokenizer.eot, config.mask_prompt)
    shown = []
    for row, number in enumerate(chosen):
        file, line = batch.records[row]
        shown.append((f"example {number}: {file}, line {line}", viewer.row_tokens(batch, row, tokenizer)))
    if options.html:
        with atomic_write(options.html) as file:
            file.write(viewer.as_html(shown))
        print(options.html)
        return
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    print(describe_ledger("data", datasets["data"].ledger))
    print(f"template {tokenizer.template.name}   {viewer.legend(colour)}\n")
    for title, tokens in shown:
        n_targets = sum(token.kind == "target" for token in tokens)
        print(f"--- {title}: {len(tokens)} tokens, {n_targets} targets")
        print(viewer.as_text(tokens, colour))
        if options.row is not None:
            print(viewer.as_table(tokens))


def command_prepare(argv: list[str]) -> None:
    """Write the records with their prompts hydrated, as {"input": prompt, "output": response} or {"text": text}.

    Trained on with `--template plain`, the file gives what `--template T` gives on single-turn records, in a vocabulary
    without special tokens of the template's.
    """
    parser = Parser(prog="python -m gptft prepare", description=command_prepare.__doc__)
    parser.add_argument("--data", nargs="+", required=True, help="files, as for training")
    parser.add_argument("--template", required=True, help="alpaca, qa, phi3, llama2, chatml, plain or a TOML file")
    parser.add_argument("--out", required=True, help="the .jsonl file to write")
    parser.add_argument("--fields", nargs="+", default=[], help="which key plays which part, as for training")
    options = parser.parse_args(argv)
    config = resolve("", {"fields": options.fields})
    from gptft.prompts import hydrate, load_template, recognise
    from gptft.records import Unreadable, find, parse, raw_records

    template = load_template(options.template, config.fields)
    template.check_fields(config.fields)
    paths = find(options.data)
    if any(os.path.exists(options.out) and os.path.samefile(path, options.out) for path in paths):
        raise UserError(f"--out {options.out} is one of the files to read")
    count = 0
    with atomic_write(options.out) as out:
        for path in paths:
            for line, raw in raw_records(path):
                try:
                    record = hydrate(template, recognise(parse(raw), config.fields))
                except (BadRecord, Unreadable) as error:
                    raise UserError(f"{path}, line {line}: {error}; nothing was written") from None
                out.write(json_line(record))
                count += 1
        if not count:
            raise UserError(f"{', '.join(map(str, paths))}: there is no record; nothing was written")
    print(f"{count:,} records in {options.out}")


COMMANDS = {
    "train": command_train,
    "generate": command_generate,
    "chat": command_chat,
    "evaluate": command_evaluate,
    "inspect": command_inspect,
    "prepare": command_prepare,
}


def main(argv: list[str]) -> None:
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: python -m gptft COMMAND ...\n")
        for name, command in COMMANDS.items():
            print(f"  {name:<10}{command.__doc__.splitlines()[0]}")
        return
    if argv[0] not in COMMANDS:
        raise UserError(f"unknown command {argv[0]!r}{nearest(argv[0], COMMANDS)}")
    COMMANDS[argv[0]](argv[1:])


def entry() -> None:
    """The console script `gptft`."""
    run(main)


if __name__ == "__main__":
    entry()
