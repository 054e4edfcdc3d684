"""A CUDA device simulated on the CPU, for tests where there is no GPU.

Inside ``with SimulatedCuda() as simulated:`` torch sees one CUDA device. A tensor asked for there is a
wrapper that says it is on ``cuda:0``, holds CPU memory, and refuses to meet CPU tensors as one on a GPU does.
`simulated.waits` counts what makes the host wait for the device, and `simulated.places` counts the waits by
the line of the package that asked.

Shown: tensors on the wrong device, results that stay on the device, waits of the host. Not shown: speed,
memory, the rounding of the device's kernels, streams, pinned memory, several devices, random numbers of the
device, other functions of ``torch.cuda``. A CPU tensor without dimensions may meet any tensor on the device,
although torch allows it only in pointwise functions; copies to the device are not counted; processes that are
started inside see no device.
"""

from __future__ import annotations

import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path
from typing import Any, Self
from unittest import mock

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import torchlinreg

Function = Callable[..., Any]
PACKAGE = str(Path(torchlinreg.__file__).parent)
CUDA = torch.device("cuda", 0)
CPU = torch.device("cpu")
MIXED = "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
GENERATOR = "Expected a 'cuda' device type for generator but found 'cpu'"
INDICES = "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
NOT_NUMPY = (
    "can't convert cuda:0 device type tensor to numpy. "
    "Use Tensor.cpu() to copy the tensor to host memory first."
)
# Operators whose result, or its size, the host has to know before it goes on.
WAITS = {
    "_local_scalar_dense": "scalar",
    "equal": "scalar",
    "nonzero": "size",
    "masked_select": "size",
    "_unique2": "size",
    "unique_dim": "size",
    "repeat_interleave": "size",
    "_linalg_check_errors": "check",
}
# What torch.cuda answers inside. Seeds find it not initialised, since there are no generators of the device.
ANSWERS = {
    "is_available": lambda: True,
    "device_count": lambda: 1,
    "current_device": lambda: 0,
    "is_current_stream_capturing": lambda: False,
    "synchronize": lambda device=None: None,
    "empty_cache": lambda: None,
}
_entered: list[SimulatedCuda] = []


class CudaTensor(torch.Tensor):
    """CPU memory that says it is on a CUDA device."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> CudaTensor:
        wrapper = torch.Tensor._make_wrapper_subclass(cls, held.size(), dtype=held.dtype, device=CUDA)
        wrapper.held = held
        return wrapper

    @classmethod
    def __torch_function__(cls, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"the simulated device does not know how {func} was called")

    def __repr__(self) -> str:
        return f"CudaTensor({self.held!r})"

    def __reduce_ex__(self, protocol: Any) -> Any:
        return CudaTensor, (self.held,)

    def __iter__(self) -> Iterator[torch.Tensor]:
        return iter(self.unbind(0))

    __hash__ = object.__hash__


class _Functions(TorchFunctionMode):
    """Meets the functions that get a tensor on the device, or make one."""

    def __torch_function__(self, func: Function, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in OWN or _is_cuda(kwargs.get("device")) or any(_on_device(args)) or any(_on_device(kwargs)):
            return _run(func, args, kwargs)
        return func(*args, **kwargs)


class _Waits(TorchDispatchMode):
    """Counts the operators within a function of the device that make the host wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in WAITS:
            _count(WAITS[name])
        elif name == "index" and _has_mask(args[1]):
            _count("size")
        elif name in ("index_put", "index_put_") and _has_mask(args[1]) and args[2].numel() != 1:
            _count("size")  # one value for all that a mask selects is filled in without their number
        return func(*args, **(kwargs or {}))


class SimulatedCuda:
    """A context in which torch sees one CUDA device, in this thread and those started inside.

    Attributes
    ----------
    waits : Counter of str
        How often the host waits for the device: for a ``"copy"``, a ``"scalar"``, the ``"size"`` of a
        result, or the ``"check"`` of a factorisation.
    places : Counter of str
        The same by file and line of the package.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.places: Counter[str] = Counter()

    def __enter__(self) -> Self:
        run = threading.Thread.run

        def run_there(thread: threading.Thread) -> None:
            with _Functions():
                run(thread)

        # Optimizers update a GPU's parameters together.
        optimizer = import_module("torch.optim.optimizer")
        together = [*optimizer._foreach_supported_types, CudaTensor]
        with ExitStack() as stack:
            stack.enter_context(mock.patch.multiple(torch.cuda, **ANSWERS))
            stack.enter_context(mock.patch.object(threading.Thread, "run", run_there))
            stack.enter_context(mock.patch.object(optimizer, "_foreach_supported_types", together))
            stack.enter_context(_Functions())
            _entered.append(self)
            stack.callback(_entered.remove, self)
            self._left = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._left.close()


def _count(kind: str) -> None:
    """Count a wait, and the innermost line of the package that asked for it."""
    if not _entered:
        return
    _entered[-1].waits[kind] += 1
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename.startswith(PACKAGE):
            _entered[-1].places[f"{frame.f_code.co_filename[len(PACKAGE) + 1 :]}:{frame.f_lineno}"] += 1
            return
        frame = frame.f_back


def _run(func: Function, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run a function on the memory that is kept, and wrap the tensors it returns."""
    if func in OWN:
        return OWN[func](*args, **kwargs)
    if func.__name__ == "__get__":
        return _wrapped(func(args[0].held, *args[1:]), {})
    tensors = list(_tensors((args, kwargs)))
    kwargs = dict(kwargs)
    device = kwargs.pop("device", None)
    if device is None:
        _refuse_mixed(tensors, func)
        on_device = True
    else:
        on_device = _is_cuda(device)
        kwargs["device"] = CPU
    generator = kwargs.get("generator")
    if on_device and isinstance(generator, torch.Generator) and generator.device.type == "cpu":
        raise RuntimeError(GENERATOR)
    with _Waits():
        out = func(*_held(args), **_held(kwargs))
    return _wrapped(out, {id(x.held): x for x in tensors if isinstance(x, CudaTensor)}) if on_device else out


def _refuse_mixed(tensors: list[torch.Tensor], func: Function) -> None:
    """Raise torch's error where a CPU tensor with dimensions, or one that is written to, meets the device."""
    name = func.__name__
    is_in_place = re.fullmatch(r".*[^_]_|__i(?!nvert__).*__", name) is not None
    for number, tensor in enumerate(tensors):
        if not isinstance(tensor, CudaTensor) and (tensor.dim() > 0 or (is_in_place and number == 0)):
            raise RuntimeError(f"{MIXED} ({name})")


def _to(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
    """``Tensor.to``, and the copies between devices that other functions ask for."""
    target = tensor.device
    for value in (*args, *kwargs.values()):
        if isinstance(value, torch.Tensor):
            target = value.device
        elif isinstance(value, str | torch.device):
            target = torch.device(value)
    if _is_cuda(tensor.device) and target.type == "cpu":
        _count("copy")
    held = _held(tensor)
    out = held.to(*map(_on_cpu, args), **{name: _on_cpu(value) for name, value in kwargs.items()})
    if target.type == tensor.device.type:
        return tensor if out is held else _wrapped(out, {}) if isinstance(tensor, CudaTensor) else out
    out = out.clone() if out is held else out
    return CudaTensor(out) if _is_cuda(target) else out


def _on_cpu(value: Any) -> Any:
    return CPU if isinstance(value, str | torch.device) else _held(value)


def _cpu(tensor: torch.Tensor, **kwargs: Any) -> torch.Tensor:
    return _to(tensor, CPU, **kwargs)


def _cuda(tensor: torch.Tensor, device: Any = None, **kwargs: Any) -> torch.Tensor:
    return _to(tensor, CUDA, **kwargs)


def _copy(to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    if isinstance(source, CudaTensor) and not isinstance(to, CudaTensor):
        _count("copy")
    _held(to).copy_(_held(source))
    return to


def _numpy(tensor: torch.Tensor, *args: Any, force: bool = False, **kwargs: Any) -> Any:
    if not isinstance(tensor, CudaTensor):
        return tensor.numpy(force=force)
    if not force:
        raise TypeError(NOT_NUMPY)
    return _cpu(tensor.detach()).numpy()


def _array(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
    if isinstance(tensor, CudaTensor):
        raise TypeError(NOT_NUMPY)
    return torch.Tensor.__array__(tensor, *args, **kwargs)


def _tolist(tensor: torch.Tensor) -> Any:
    return (_cpu(tensor) if isinstance(tensor, CudaTensor) else tensor).tolist()


def _getitem(tensor: torch.Tensor, index: Any) -> torch.Tensor:
    if not isinstance(tensor, CudaTensor):
        if any(_on_device(index)):
            raise RuntimeError(INDICES)
        return tensor[index]
    with _Waits():
        return CudaTensor(tensor.held[_held(index)])


def _setitem(tensor: torch.Tensor, index: Any, value: Any) -> None:
    """A slice takes a copy of values from anywhere; rows of given indices only of values on the device."""
    here = not isinstance(tensor, CudaTensor)
    if here and any(_on_device(index)):
        raise RuntimeError(INDICES)
    if isinstance(value, torch.Tensor) and here == isinstance(value, CudaTensor):
        if value.dim() > 0 and next(_tensors(index), None) is not None:
            raise RuntimeError(f"{MIXED} (__setitem__)")
        if here:
            _count("copy")
    with _Waits():
        _held(tensor)[_held(index)] = _held(value)


def _from_data(func: Function) -> Function:
    """torch.tensor and its kin: data in a list come to the CPU, a tensor stays where it is."""

    def call(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Any:
        target = (data.device if isinstance(data, torch.Tensor) else CPU) if device is None else device
        if isinstance(data, CudaTensor):
            if _is_cuda(target):
                return _wrapped(func(data.held, *args, **kwargs), {id(data.held): data})
            _count("copy")
        elif not _is_cuda(target):
            return func(data, *args, device=device, **kwargs)
        out = func(_held(data), *args, device=CPU, **kwargs)
        return CudaTensor(out.clone()) if _is_cuda(target) else out.clone()

    return call


# Functions that mean more on the device than the same function of its memory.
OWN: dict[Function, Function] = {
    torch.Tensor.device.__get__: lambda x, *_: CUDA if isinstance(x, CudaTensor) else x.device,
    torch.Tensor.is_cuda.__get__: lambda x, *_: isinstance(x, CudaTensor),
    torch.Tensor.is_cpu.__get__: lambda x, *_: not isinstance(x, CudaTensor),
    torch.Tensor.get_device: lambda x: 0 if isinstance(x, CudaTensor) else -1,
    torch.Tensor.to: _to,
    torch.Tensor.cpu: _cpu,
    torch.Tensor.cuda: _cuda,
    torch.Tensor.copy_: _copy,
    torch.Tensor.numpy: _numpy,
    torch.Tensor.__array__: _array,
    torch.Tensor.tolist: _tolist,
    torch.Tensor.__getitem__: _getitem,
    torch.Tensor.__setitem__: _setitem,
    **{func: _from_data(func) for func in (torch.tensor, torch.as_tensor, torch.asarray)},
}


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested arguments."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple | dict):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _tensors(part)


def _on_device(value: Any) -> Iterator[bool]:
    return (isinstance(tensor, CudaTensor) for tensor in _tensors(value))


def _has_mask(indices: list[torch.Tensor | None]) -> bool:
    return any(index is not None and index.dtype is torch.bool for index in indices)


def _held(value: Any) -> Any:
    """Nested arguments with the memory that is kept instead of the wrappers."""
    if isinstance(value, CudaTensor):
        return value.held
    if type(value) in (list, tuple):
        return type(value)(map(_held, value))
    if type(value) is dict:
        return {key: _held(part) for key, part in value.items()}
    return value


def _wrapped(value: Any, given: dict[int, CudaTensor]) -> Any:
    """Nested results with wrappers; in-place functions and out= give back what they were given."""
    if isinstance(value, torch.Tensor):
        return given[id(value)] if id(value) in given else CudaTensor(value)
    if isinstance(value, list | tuple):
        parts = [_wrapped(part, given) for part in value]
        return value._make(parts) if hasattr(value, "_make") else type(value)(parts)
    return value
