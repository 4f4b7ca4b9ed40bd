"""The hub: from a model's id there to a local directory."""

from __future__ import annotations

from pathlib import Path

from gptft.errors import UserError, need_extra


def download(hub_id: str) -> Path:
    """The local directory of a hub id, fetched with huggingface_hub, or found in its cache without a network."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError
    except ImportError:
        raise need_extra("huggingface_hub", "hf", f"the hub id {hub_id!r}") from None
    patterns = ["*.json", "chat_template.jinja", "merges.txt", "*.safetensors"]
    others = ["*/*", "consolidated*", "model.fp16*"]  # the same weights in other forms
    try:
        directory = Path(snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=others))
        if not any(directory.glob("*.safetensors")):
            patterns += ["pytorch_model*", "adapter_model.bin"]
            directory = Path(snapshot_download(hub_id, allow_patterns=patterns, ignore_patterns=others))
        return directory
    except GatedRepoError:
        raise UserError(f"{hub_id!r} is gated: ask for access on its page and log in with `hf auth login`") from None
    except RepositoryNotFoundError:
        raise UserError(f"{hub_id!r} is no local directory, no preset and no repository on the hub") from None
    except LocalEntryNotFoundError:
        raise UserError(f"{hub_id!r} is no directory, not in the local cache, and the hub cannot be reached") from None
    except Exception as error:  # whatever else a network can do
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"{hub_id!r} cannot be downloaded ({type(error).__name__}: {first})") from None
