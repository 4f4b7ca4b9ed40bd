"""Where the rows of a model's weights go as they are read, piece by piece, whatever the model has become meanwhile: its
linear layers frozen in fewer bits, adapters beside them, each process with a part of every tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gptft.adapters.frozen import HalfLinear, Int8Linear, check_range, in_int8, linear_layers
from gptft.device import put_rows, rows_here
from gptft.model import GPT


@dataclass(frozen=True)
class PlaceForRows:
    """Of one weight: the tensor that holds it, and `put`, which takes (first row, row after the last, those rows)."""

    held: Tensor
    put: Callable[[int, int, Tensor], None]

    @property
    def wanted(self) -> tuple[int, int]:
        """The rows that this process holds: the first, and the one after the last."""
        mine, first = rows_here(self.held)
        return first, first + mine.size(0)


def places_for_rows(model: GPT) -> dict[str, PlaceForRows]:
    """By the names that weights have in a plain model, and by those of adapters."""
    # `state_dict` has a model in parts let go of what a pass has gathered
    places = {name: PlaceForRows(tensor, partial(put_rows, tensor)) for name, tensor in model.state_dict().items()}
    for path, _, _, layer in linear_layers(model):
        layer = getattr(layer, "base", layer)  # beside an adapter
        for name, tensor in layer.state_dict().items():
            places[f"{path}.{name}"] = PlaceForRows(tensor, partial(put_rows, tensor))
            if isinstance(layer, HalfLinear):
                put = partial(put_half, tensor, f"{path}.{name}", model.tok.weight.dtype)
                places[f"{path}.{name}"] = PlaceForRows(tensor, put)
        if isinstance(layer, Int8Linear):
            put = partial(put_int8, layer, model.tok.weight.dtype)
            places[f"{path}.weight"] = PlaceForRows(layer.q, put)
    return places


# Both round what `dtype`, in which the model is loaded, leaves of a number, as if it had been there whole.


def put_half(held: Tensor, path: str, dtype: torch.dtype, start: int, stop: int, rows: Tensor) -> None:
    """Rows of what a HalfLinear holds. Raises UserError for numbers beyond fp16's range, where it is fp16."""
    rows = rows.to(dtype)
    if held.dtype == torch.float16:
        check_range(rows, path)
    put_rows(held, start, stop, rows)


def put_int8(layer: Int8Linear, dtype: torch.dtype, start: int, stop: int, rows: Tensor) -> None:
    """Rows of an Int8Linear's weight; each has a scale of its own."""
    q, scale = in_int8(rows.to(dtype))
    put_rows(layer.q, start, stop, q)
    layer.scale[start:stop].copy_(scale)
