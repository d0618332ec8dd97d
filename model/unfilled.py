"""Models whose parameters nobody fills, for weights that come from a file."""

from __future__ import annotations

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class Unfilled(TorchFunctionMode):
    """New parameters keep whatever memory holds: weights of a file take their place, and random numbers for
    ten million items would cost seconds and gigabytes first."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        fills = getattr(function, "__module__", None) == "torch.nn.init"
        if fills or function in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0] if args else (kwargs or {})["tensor"]
        return function(*args, **(kwargs or {}))
