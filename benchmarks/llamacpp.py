"""Exports to GGUF, run by the real llama.cpp: the same greedy ids, and how near the logits come.

It runs the tests marked `llamacpp` of `tests/export/test_llamacpp.py`, which train a toy model of each shape until its
margins are clear, and collects what was found. llama-cpp-python must be installed (extra `llamacpp`), or
GPTFT_LLAMACPP_PYTHON must name the Python of another environment that has it.
"""

from __future__ import annotations

from benchmarks import common, results

KINDS = ("fp32", "fp16", "q8_0")


def main(argv: list[str]) -> None:
    options = common.parser("llamacpp", __doc__, rounds=1).parse_args(argv)
    common.need("torch", "pytest", "gguf")
    result = common.header("llamacpp", options, {"quick": options.quick}, ["torch", "gguf"])
    rows = common.run_tests(["-m", "llamacpp", "tests/export/test_llamacpp.py"], options)
    rows = [row for row in rows if row.get("test") == "gguf"]
    result["versions"]["llama-cpp-python"] = rows[0]["version"]
    result["rounds"] = [{f"{row['case']} {row['kind']}": row for row in rows}]
    result["summary"] = {}
    for row in rows:
        case = result["summary"].setdefault(row["case"], {"arch": row["arch"], "margin": row["margin"], "kinds": {}})
        case["kinds"][row["kind"]] = {"same": row["same"], "relative": row["relative"]}
    results.save(result, common.results_folder(options))


def table(result: dict) -> str:
    rows = []
    for case, found in result["summary"].items():
        cells = [
            f"{'the same' if kind['same'] else 'OTHERS'}, {kind['relative']:.0e}"
            for kind in (found["kinds"][name] for name in KINDS)
        ]
        rows.append([case, found["arch"], f"{found['margin']:.1f}", *cells])
    head = ["model", "llama.cpp's architecture", "smallest margin of the logits", *KINDS]
    notes = (
        "Greedy ids of four prompts, 20 new tokens each, llama.cpp's KV cache in fp32, and the relative difference of "
        "the logits of a prompt. With GELU llama.cpp looks the activation up in a table of fp16 numbers, which is what "
        "remains in fp32 there."
    )
    return f"{notes}\n\n{results.markdown(head, rows)}"
