"""A real model in EleutherAI's harness: the same weights, asked by us and by the harness's own Hugging Face model."""

import pytest
import torch
from test_smollm2 import FILE, PATH, pytestmark  # noqa: F401

from gptft.evaluation.harness import harness_model
from gptft.evaluation.tasks import run_tasks
from gptft.loading import load

pytest.importorskip("gguf")
tokenizers = pytest.importorskip("tokenizers")
transformers = pytest.importorskip("transformers")
lm_eval = pytest.importorskip("lm_eval")


@pytest.fixture(scope="module")
def theirs():
    from lm_eval.models.huggingface import HFLM

    model = transformers.AutoModelForCausalLM.from_pretrained(PATH.parent, gguf_file=FILE, dtype=torch.float32).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(PATH.parent, gguf_file=FILE)
    # out of a GGUF file transformers leaves out that digits stand alone, as they do in the model's own tokenizer.json
    steps = [tokenizers.pre_tokenizers.Digits(individual_digits=True), tokenizer.backend_tokenizer.pre_tokenizer]
    tokenizer.backend_tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(steps)
    # in fp32 torch's log_softmax over 49,152 ids is off by 2e-5 a token on the CPU, the logits themselves are ours to
    # the last bit: with the softmax in fp64 the harness's own figures are right
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4, softmax_dtype="float64")


@pytest.mark.parametrize("batch_size", [1, 16])
def test_every_sample_has_the_log_likelihood_that_the_harness_own_model_gives(theirs, shared, batch_size):
    """HellaSwag: four endings of one context, which we read once and it reads four times."""
    tasks = [f"hellaswag={shared / 'benchmarks' / 'hellaswag_val_full.txt.bz2'}"]
    how = {"limit": 6, "bootstrap_iters": 0, "log_samples": True}
    ours = run_tasks(harness_model(*load(PATH), batch_size), tasks, **how)
    reference = run_tasks(theirs, tasks, **how)
    for mine, other in zip(ours["samples"]["hellaswag"], reference["samples"]["hellaswag"], strict=True):
        assert mine["doc_id"] == other["doc_id"] and len(mine["filtered_resps"]) == 4
        for (value, greedy), (expected, likely) in zip(mine["filtered_resps"], other["filtered_resps"], strict=True):
            assert float(value) == pytest.approx(float(expected), rel=1e-5) and str(greedy) == str(likely)
    for name in ("acc,none", "acc_norm,none"):
        assert ours["results"]["hellaswag"][name] == reference["results"]["hellaswag"][name]
