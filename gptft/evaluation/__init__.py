"""What a model has learned: held-out loss, and its responses compared with those expected."""

from gptft.evaluation.loss import Interrupted, evaluate_loss
from gptft.evaluation.responses import answer, exact_match, is_exact, prompt_and_expected

__all__ = ["Interrupted", "answer", "evaluate_loss", "exact_match", "is_exact", "prompt_and_expected"]
