"""`BasicModelRunner`: the three lines of the course, on this machine instead of somebody's server."""

from __future__ import annotations

from pathlib import Path

from gptft.checkpoint import model_id
from gptft.data.sources import find
from gptft.device import pick_device
from gptft.errors import UserError
from gptft.finetuning import Run, finetune
from gptft.generation import generate
from gptft.loading import load


class BasicModelRunner:
    """Ask a model, tune it on question/answer data, ask again.

        model = BasicModelRunner("gpt2")
        model.load_data_from_jsonlines("lamini_docs.jsonl")
        model.train()
        model("Does Lamini support 8-bit training?")

    `model_name` is anything that `gptft.load` takes. `settings` are those of `python train.py --help`.
    """

    def __init__(self, model_name: str, **settings) -> None:
        self.model_name, self.settings = model_name, settings
        self.model, self.tokenizer = load(model_name, pick_device(settings.get("device", "auto")))
        if self.tokenizer is None:
            raise UserError(f"{model_name} has no tokenizer")
        self.data: str | None = None
        self.run: Run | None = None

    def load_data_from_jsonlines(self, path: str, input_key: str | None = None, output_key: str | None = None) -> None:
        """Name the data to train on. The keys are recognised unless given; all records are used, none is left out."""
        find([str(path)])
        if bool(input_key) != bool(output_key):
            raise UserError("give both input_key and output_key, or neither")
        self.data = str(path)
        self.settings.pop("fields", None)
        if input_key:
            self.settings["fields"] = {"instruction": input_key, "response": output_key}

    def train(self, **settings) -> str:
        """Fine-tune the model that was named on the data, and answer with the tuned one from now on. Returns its
        model id. A second call starts from the named model again."""
        if self.data is None:
            raise UserError("there is no data to train on: call load_data_from_jsonlines first")
        self.run = finetune(init=str(self.model_name), data=self.data, **{**self.settings, **settings})
        self.model, self.tokenizer = self.run.model, self.run.tokenizer
        return self.run.summary["model_id"]

    @property
    def model_id(self) -> str:
        """A hash of the weights, architecture and tokenizer that answer now."""
        return model_id(self.model, self.tokenizer)

    @property
    def path(self) -> Path | None:
        """The folder of the last training run."""
        return self.run.path if self.run else None

    def __call__(self, prompt: str | list[str], max_new_tokens: int = 100) -> str | list[str]:
        """The model's response to a prompt, or to each of a list of prompts."""
        prompts = [prompt] if isinstance(prompt, str) else prompt
        responses = generate(self.model, self.tokenizer, prompts, max_new_tokens)
        return responses[0] if isinstance(prompt, str) else responses
