"""`BasicModelRunner`: the three lines of the course, on this machine instead of somebody's server."""

from __future__ import annotations

import warnings
from pathlib import Path

from gptft.checkpoint import model_id
from gptft.data.build import NAMED
from gptft.data.compressed import kind_of
from gptft.data.shapes import recognise
from gptft.data.sources import find, parse, raw_records
from gptft.device import pick_device
from gptft.errors import BadRecord, Unreadable, UserError
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
        self.fields: dict[str, str] | None = None
        self.run: Run | None = None

    def load_data_from_jsonlines(self, path: str, input_key: str | None = None, output_key: str | None = None) -> None:
        """Name the data to train on. The keys are recognised unless given. All records are used but those that cannot
        be (the course's own file has one empty answer): a warning counts them and names their lines, and training goes
        on without them, unless the setting `bad_records` says "stop"."""
        (file,) = find([str(path)])
        if bool(input_key) != bool(output_key):
            raise UserError("give both input_key and output_key, or neither")
        self.data = str(path)
        self.fields = {"instruction": input_key, "response": output_key} if input_key else self.settings.get("fields")
        if self.settings.get("bad_records") != "stop":
            warn_of_bad_records(file, self.fields)

    def train(self, **settings) -> str:
        """Fine-tune the model that was named on the data, and answer with the tuned one from now on. Returns its
        model id. A second call starts from the named model again."""
        if self.data is None:
            raise UserError("there is no data to train on: call load_data_from_jsonlines first")
        settings = {"bad_records": "drop", **self.settings, "fields": self.fields or {}, **settings}
        self.run = finetune(init=str(self.model_name), data=self.data, **settings)
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


def warn_of_bad_records(path: Path, fields: dict[str, str] | None) -> None:
    """Warn with the number of records that will be left out, and the first of them by line. A text file has none.

    Raises UserError where no record is left.
    """
    if kind_of(path) == ".txt":
        return
    count, first_bad, n_bad = 0, [], 0
    for line, raw in raw_records(path):
        count += 1
        try:
            recognise(parse(raw), fields)
        except (BadRecord, Unreadable) as error:
            n_bad += 1
            if n_bad <= NAMED:
                first_bad.append(f"\n  {path}, line {line}: {error}")
    if not n_bad:
        return
    named = "".join(first_bad) + (f"\n  ... and {n_bad - NAMED:,} more" if n_bad > NAMED else "")
    if n_bad == count:
        raise UserError(f"none of the {count:,} records of {path} can be used:{named}")
    warnings.warn(f"{n_bad:,} of {count:,} records cannot be used and will be left out:{named}", stacklevel=3)
