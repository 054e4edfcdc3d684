"""How much work a call gives to torch, whatever else the machine does."""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class TensorWork(TorchFunctionMode):
    """Counts the numbers that functions of torch write; views write none."""

    def __init__(self) -> None:
        super().__init__()
        self.n_numbers = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function and count its results."""
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple) else (result,):
            if isinstance(each, torch.Tensor) and not each._is_view():
                self.n_numbers += each.numel()
        return result
