"""llama.cpp decodes greedily, and says how fast. `decode` gives this text to a Python that has llama-cpp-python, and
maybe not gptft, with the task as JSON; the outcome, JSON too, is the last line that is printed.
"""

import itertools
import json
import sys
import time

import llama_cpp

FP32 = 0  # ggml's number for it


def main(task: dict) -> dict:
    """Decode `prompt` (ids) with the GGUF file `file` until there are `new` ids, after a short one to warm up."""
    model = llama_cpp.Llama(
        task["file"],
        n_ctx=len(task["prompt"]) + task["new"] + 8,
        n_threads=task["threads"],
        n_threads_batch=task["threads"],
        type_k=FP32,
        type_v=FP32,
        verbose=False,
    )

    def run(new: int) -> list[int]:
        model.reset()  # else the prompt would not be computed again
        return list(itertools.islice(model.generate(task["prompt"], temp=0.0, repeat_penalty=1.0), new))

    run(4)
    began = time.perf_counter()
    ids = run(task["new"])
    seconds = time.perf_counter() - began
    return {"tokens_per_second": len(ids) / seconds, "ids": [ids], "version": llama_cpp.__version__}


if __name__ == "__main__":
    print("\n" + json.dumps(main(json.loads(sys.argv[1]))))
