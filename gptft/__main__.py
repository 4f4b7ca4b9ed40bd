"""The commands: train, generate, chat, evaluate, inspect, prepare, merge, export, each with --help."""

from __future__ import annotations

import os
import sys
from functools import partial

from gptft.commands.common import (
    MODEL,
    Parser,
    add_base,
    add_device,
    add_reading,
    add_sampling,
    load_model,
    run,
    whole,
)
from gptft.config import FIELDS, help_text, parse_arguments, resolve
from gptft.errors import BadRecord, UserError, nearest
from gptft.files import atomic_write, json_line

TRAIN_USAGE = "usage: python train.py [--config FILE.toml] [--FIELD VALUE ...]"


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
    from gptft.commands.default import embedded_default
    from gptft.finetuning import finetune

    if default:
        embedded_default(given)
    else:
        finetune(config)


def command_generate(argv: list[str]) -> None:
    """Answer prompts from the command line, or from standard input, a prompt a line."""
    parser = Parser(prog="python -m gptft generate", description=command_generate.__doc__)
    parser.add_argument("model", help=MODEL)
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
    from gptft.generation import generate

    responses = generate(
        model,
        tokenizer,
        prompts,
        options.max_new_tokens,
        options.raw,
        options.max_input_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        seed=options.seed,
    )
    for response in responses:
        print(response)


def command_chat(argv: list[str]) -> None:
    """Talk with a model; an empty line or Ctrl-D ends it, /new starts a new conversation."""
    parser = Parser(prog="python -m gptft chat", description=command_chat.__doc__)
    parser.add_argument("model", help=MODEL)
    add_sampling(parser)
    options = parser.parse_args(argv)
    model, tokenizer = load_model(options)
    from gptft.decoding import Sampling, decode
    from gptft.generation import prompt_ids, stop_of

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
        history = [*history, {"role": "assistant", "content": text}] if multi_turn else []


def command_evaluate(argv: list[str]) -> None:
    """Measure a model on data: loss a target, and the share of responses that are exactly as expected."""
    parser = Parser(prog="python -m gptft evaluate", description=command_evaluate.__doc__)
    parser.add_argument("model", help=MODEL)
    parser.add_argument("--data", nargs="+", required=True, help="files to measure on")
    parser.add_argument("--samples", type=whole(0), default=100, help="records to answer; 0: none [100]")
    parser.add_argument("--batch_size", type=whole(1), default=16, help="examples a batch; changes no result [16]")
    parser.add_argument("--max_new_tokens", type=whole(1), default=100, help="longest response, tokens [100]")
    add_reading(parser)
    add_device(parser)
    options = parser.parse_args(argv)
    config = resolve(
        "",
        {
            "data": options.data,
            "val_fraction": 0.0,
            "test_fraction": 0.0,
            "init": options.model,
            "template": options.template or "auto",
            "fields": options.fields,
            "bad_records": options.bad_records,
        },
    )
    from gptft.collate import collate
    from gptft.device import Precision
    from gptft.evaluation.responses import answer, is_exact, prompt_and_expected
    from gptft.finetuning import check_inputs, load_data
    from gptft.loss import Objective
    from gptft.run.console import describe_ledger
    from gptft.training import evaluate_loss

    check_inputs(config)
    model, tokenizer = load_model(options, config.fields)
    datasets, (examples, _, _) = load_data(config, model, tokenizer)
    print(describe_ledger("data", datasets["data"].ledger))
    to_batch = partial(collate, pad_id=tokenizer.eot)
    loss = evaluate_loss(Objective(model), examples, options.batch_size, to_batch, Precision("fp32", model.device))
    print(f"loss {loss:.4f} nats a target, over {len(examples):,} examples")
    asked = range(min(options.samples, len(examples)))
    pairs = [prompt_and_expected(record, config.fields) for record in examples.records(asked)]
    pairs = [pair for pair in pairs if pair]
    if pairs:
        responses = answer(
            model,
            tokenizer,
            [prompt for prompt, _ in pairs],
            options.max_new_tokens,
            model.config.block_size,
            options.batch_size,
        )
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
    add_base(parser)
    add_reading(parser)
    options = parser.parse_args(argv)
    names = ("data", "init", "template", "max_length", "truncation", "mask_prompt", "fields", "bad_records")
    config = resolve("", {name: getattr(options, name) for name in names} | {"val_fraction": 0, "test_fraction": 0})
    from gptft.collate import collate
    from gptft.finetuning import check_inputs, load_data, load_start
    from gptft.report import viewer
    from gptft.run.console import describe_ledger

    check_inputs(config)
    model, tokenizer = load_start(config, options.base)
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
    from gptft.data.shapes import recognise
    from gptft.data.sources import Unreadable, find, parse, raw_records
    from gptft.prompts import hydrate, load_template

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


def command_merge(argv: list[str]) -> None:
    """Fold adapters into their base and write an ordinary checkpoint, in full precision."""
    parser = Parser(prog="python -m gptft merge", description=command_merge.__doc__)
    parser.add_argument(
        "adapter", help="a checkpoint of a run with --lora_rank, the run's folder, or a directory of PEFT's"
    )
    parser.add_argument("out", help="the folder to write; it must not exist")
    add_base(parser)
    options = parser.parse_args(argv)
    from gptft.loading import merge

    merge(options.adapter, options.out, options.base)
    print(options.out)


def command_export(argv: list[str]) -> None:
    """Write a model for other programs: Hugging Face's transformers, llama.cpp, or (adapters) PEFT."""
    parser = Parser(prog="python -m gptft export", description=command_export.__doc__)
    parser.add_argument("model", help=MODEL)
    parser.add_argument("out", help="the directory (hf, peft) or file (gguf) to write; it must not exist")
    parser.add_argument(
        "--format",
        required=True,
        choices=("hf", "gguf", "peft"),
        help="hf: config.json, model.safetensors, tokenizer, model card; gguf: one file for llama.cpp; "
        "peft: the adapters alone",
    )
    parser.add_argument(
        "--dtype",
        default="",
        help="how weights are stored; hf: fp32, bf16 or fp16 [as they are]; gguf: fp32, fp16 or q8_0 [fp16]",
    )
    parser.add_argument("--shard_gb", type=float, default=5.0, help="hf: largest file of weights, GB [5]")
    parser.add_argument("--name", default="", help="what the model is called [the name of OUT]")
    parser.add_argument("--license", default="", help="hf: the license's id, for the model card")
    parser.add_argument("--base_name", default="", help="peft: what the base is called there [as it was in training]")
    add_base(parser)
    options = parser.parse_args(argv)
    from gptft.export import export

    for note in export(options):
        print(f"note: {note}")
    print(options.out)


COMMANDS = {
    "train": command_train,
    "generate": command_generate,
    "chat": command_chat,
    "evaluate": command_evaluate,
    "inspect": command_inspect,
    "prepare": command_prepare,
    "merge": command_merge,
    "export": command_export,
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
