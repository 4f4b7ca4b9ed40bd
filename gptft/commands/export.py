"""Write a model for other programs: Hugging Face's transformers, llama.cpp, or (adapters) PEFT."""

from __future__ import annotations

from argparse import Namespace

from gptft.commands.common import MODEL, add_base
from gptft.commands.parser import Parser, number


def add_arguments(parser: Parser) -> None:
    """The model, where it goes, and in which form."""
    parser.add_argument("model", help=MODEL)
    parser.add_argument("out", help="the directory (hf, peft) or file (gguf) to write; it must not exist")
    group = parser.group("form")
    group.add_argument(
        "--format",
        required=True,
        choices=("hf", "gguf", "peft"),
        help="hf: config.json, model.safetensors, tokenizer, model card; gguf: one file for llama.cpp; "
        "peft: the adapters alone",
    )
    group.add_argument(
        "--dtype",
        default="",
        help="how weights are stored; hf: fp32, bf16 or fp16 [as they are]; gguf: fp32, fp16, bf16, q8_0, "
        "q5_1, q5_0, q4_1 or q4_0 [of a GGUF file its own, else fp16]",
    )
    group.add_argument("--shard_gb", type=number, default=5.0, help="hf: largest file of weights, GB [5]")
    group = parser.group("what it is called")
    group.add_argument("--name", default="", help="what the model is called [the name of OUT]")
    group.add_argument("--license", default="", help="hf: the license's id, for the model card")
    group.add_argument("--base_name", default="", help="peft: what the base is called there [as it was in training]")
    add_base(parser)


def run(options: Namespace) -> None:
    """Write the model, and print what should be known of it."""
    from gptft.export import export

    for note in export(options):
        print(f"note: {note}")
    print(options.out)
