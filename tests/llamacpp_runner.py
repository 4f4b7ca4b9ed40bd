"""The real llama.cpp, in this interpreter or in that of GPTFT_LLAMACPP_PYTHON: greedy ids, logits, and ids of texts."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest

REFERENCE = """
import json, sys
import llama_cpp, numpy
job = json.load(open(sys.argv[1]))
found = {"version": llama_cpp.__version__, "ids": [], "texts": []}
for number, path in enumerate(job["files"]):
    # 0 is ggml's number for fp32; each position's logits are kept
    model = llama_cpp.Llama(path, n_ctx=256, n_batch=256, n_threads=1, n_threads_batch=1, logits_all=True, type_k=0,
                            type_v=0, verbose=False)
    rows, logits = [], []
    for prompt in job["prompts"]:
        model.reset()
        model.eval(prompt)
        logits.append(numpy.array(model.scores[: len(prompt)]))
        rows.append([])
        while len(rows[-1]) < job["n_new"]:
            rows[-1].append(int(model.scores[model.n_tokens - 1].argmax()))
            model.eval(rows[-1][-1:])
    found["ids"].append(rows)
    found["texts"].append([model.tokenize(text.encode(), add_bos=True, special=False) for text in job["texts"]])
    numpy.savez(sys.argv[2] + f".{number}.npz", *logits)
json.dump(found, open(sys.argv[2], "w"))
"""


def llamacpp_python():
    """The interpreter that has llama-cpp-python, or None."""
    named = os.environ.get("GPTFT_LLAMACPP_PYTHON")
    return named or (sys.executable if importlib.util.find_spec("llama_cpp") else None)


def needs_llamacpp(test):
    missing = "no llama_cpp: pip install 'gptft[llamacpp]', or name an interpreter that has it in GPTFT_LLAMACPP_PYTHON"
    return pytest.mark.llamacpp(pytest.mark.skipif(llamacpp_python() is None, reason=missing)(test))


def run_llamacpp(files, prompts=(), texts=(), n_new=0):
    """What llama.cpp makes of each file: greedy ids and the prompts' logits, and the ids of texts."""
    job, out = files[0].parent / "job.json", files[0].parent / "out.json"
    values = {"files": list(map(str, files)), "prompts": prompts, "texts": texts, "n_new": n_new}
    job.write_text(json.dumps(values))
    done = subprocess.run([llamacpp_python(), "-c", REFERENCE, job, out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(out.read_text())
    logits = [list(np.load(f"{out}.{number}.npz").values()) for number in range(len(files))]
    return found, logits
