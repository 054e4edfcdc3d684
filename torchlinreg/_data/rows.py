"""The only door for data: any kind of X, y and weights becomes re-iterable blocks of rows.

No other module knows data kinds, devices or input dtypes. X is never copied whole and never changed: a
block is a view where torch can share the memory, and a copy of a few rows where it cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from scipy import sparse
from sklearn import get_config
from sklearn.utils import assert_all_finite, check_array, check_consistent_length
from sklearn.utils.validation import validate_data

from torchlinreg._linalg import double_double as dd

Statistic = TypeVar("Statistic")

# Rows that are converted or made dense, and exact slices, stay in the caches for their products. Wide blocks
# want 2048 rows and may take 64 MiB.
BLOCK_BYTES = 4 * 2**20
WIDE_BLOCK_BYTES = 64 * 2**20
WIDE_BLOCK_ROWS = 2048
# Up to this share of stored entries moments come straight from CSR. With 3 % that takes 0.85 to 1.07 of the
# time of dense rows, with 4 % 0.94 to 1.37.
CSR_DENSITY = 0.035


class Block(NamedTuple):
    """Some rows. `X` has a floating dtype or, in `csr`, is sparse; `y` and `weight` are float64."""

    X: torch.Tensor | None  # shape: (n_rows, n_features)
    y: torch.Tensor  # shape: (n_rows, n_targets)
    weight: torch.Tensor | None  # shape: (n_rows,)
    csr: sparse.csr_array | None = None


class Source(NamedTuple):
    """Access to the rows of one data kind."""

    n_samples: int
    n_features: int
    dtype: torch.dtype  # that results take: float32 for float32 data, else float64
    take: Callable[
        [int, int], torch.Tensor | sparse.csr_array
    ]  # rows start to stop, dense on the device or CSR
    gather: Callable[[torch.Tensor], torch.Tensor]  # rows of these indices, dense on the device
    in_place: bool = False  # whether rows are views of the user's memory
    density: float = 1.0  # share of stored entries


class RowBlocks:
    """Rows of X, y and weights that can be read any number of times, block by block.

    Parameters
    ----------
    source : Source
        The rows of X.
    y : Tensor of shape (n_samples, n_targets)
    weight : Tensor of shape (n_samples,) or None
    one_target : bool
        Whether y was given as one dimension.
    """

    def __init__(
        self, source: Source, y: torch.Tensor, weight: torch.Tensor | None, *, one_target: bool = False
    ) -> None:
        self._source = source
        self.y = y
        self.weight = weight
        self.one_target = one_target
        self.n_samples, self.n_targets = y.shape
        self.n_features = source.n_features
        self.dtype = source.dtype
        self.device = y.device
        self.in_place = source.in_place
        self.is_sparse = source.density <= CSR_DENSITY and y.device.type == "cpu"
        self.rows_per_block = _rows_per_block(self.n_features + self.n_targets + 1)

    @property
    def share(self) -> torch.Tensor:
        """The weights over their sum, shape (n_samples,)."""
        if self.weight is None:
            return torch.full((self.n_samples,), 1 / self.n_samples, dtype=torch.float64, device=self.device)
        return self.weight / self.weight.sum()

    def __iter__(self) -> Iterator[Block]:
        for start in range(0, self.n_samples, self.rows_per_block):
            yield self.rows(start, min(start + self.rows_per_block, self.n_samples))

    def rows(self, start: int, stop: int) -> Block:
        """Rows ``start`` to ``stop`` (excluded) as one block."""
        X = self._source.take(start, stop)
        weight = None if self.weight is None else self.weight[start:stop]
        if isinstance(X, torch.Tensor):
            return Block(X, self.y[start:stop], weight)
        return Block(None, self.y[start:stop], weight, X)

    def large(self, n_rows: int) -> Iterator[Block]:
        """Blocks of `n_rows`, for rows that are read where they are; the ordinary blocks for others."""
        if not self.in_place:
            return iter(self)
        starts = range(0, self.n_samples, n_rows)
        return (self.rows(start, min(start + n_rows, self.n_samples)) for start in starts)

    def dense(self) -> Iterator[Block]:
        """The same blocks, all dense."""
        return map(self._dense, self)

    def dense_rows(self, start: int, stop: int) -> Block:
        """Rows ``start`` to ``stop`` (excluded) as one dense block."""
        return self._dense(self.rows(start, stop))

    def _dense(self, block: Block) -> Block:
        if block.csr is None:
            return block
        return Block(_densify(block.csr, self.device), block.y, block.weight)

    def gather(self, index: torch.Tensor) -> Block:
        """Rows of these indices (on the CPU), as a dense block."""
        index_there = index.to(self.device)
        weight = None if self.weight is None else self.weight[index_there]
        return Block(self._source.gather(index), self.y.index_select(0, index_there), weight)

    def select(self, index: torch.Tensor, weight: torch.Tensor) -> RowBlocks:
        """Rows of these indices (on the CPU), in this order, with these weights; not a copy."""
        source = Source(
            len(index),
            self.n_features,
            self.dtype,
            lambda start, stop: self._source.gather(index[start:stop]),
            lambda inner: self._source.gather(index[inner]),
        )
        y = self.y.index_select(0, index.to(self.device))
        return RowBlocks(source, y, weight, one_target=self.one_target)

    def columns(self, index: torch.Tensor) -> RowBlocks:
        """The rows with some of the columns only (on the CPU); not a copy, but of each block."""
        there = index.to(self.device)

        def take(start: int, stop: int) -> torch.Tensor | sparse.csr_array:
            X = self._source.take(start, stop)
            return X[:, there] if isinstance(X, torch.Tensor) else X[:, index.numpy()]

        source = Source(
            self.n_samples,
            len(index),
            self.dtype,
            take,
            lambda rows: self._source.gather(rows)[:, there],
            density=self._source.density,
        )
        return RowBlocks(source, self.y, self.weight, one_target=self.one_target)

    def weighted_rows(self) -> RowBlocks:
        """The rows whose weight is not 0; not a copy."""
        if self.weight is None or bool((self.weight > 0).all()):
            return self
        index = torch.nonzero(self.weight > 0)[:, 0]
        return self.select(index.cpu(), self.weight[index])

    def head(self, n_rows: int) -> Block:
        """The first rows, as a dense block, from the first one with a positive weight on."""
        start = 0 if self.weight is None else _first_positive(self.weight)
        X = self._source.take(start, min(start + n_rows, self.n_samples))
        X = X if isinstance(X, torch.Tensor) else _densify(X, self.device)
        weight = None if self.weight is None else self.weight[start : start + n_rows]
        return Block(X, self.y[start : start + n_rows], weight)

    def map_reduce(
        self,
        of: Callable[[Block], Statistic],
        merge: Callable[[Statistic, Statistic], Statistic],
        *,
        dense: bool = False,
        rows_in_place: int | None = None,
    ) -> Statistic:
        """Merge the statistic `of` each block; one pass over the rows.

        `dense` asks for dense blocks, and `rows_in_place` for blocks of so many rows where they are read
        where they are.
        """
        if rows_in_place is not None and self.in_place:
            blocks = self.large(max(1, rows_in_place))
        else:
            blocks = iter(self.dense() if dense else self)
        result = of(next(blocks))
        for block in blocks:
            result = merge(result, of(block))
        return result

    def with_targets(self, y: torch.Tensor) -> RowBlocks:
        """The same rows with other targets, of the same shape."""
        return RowBlocks(self._source, y, self.weight, one_target=self.one_target)

    def without_weights(self) -> RowBlocks:
        """The same rows, all of weight 1."""
        return RowBlocks(self._source, self.y, None, one_target=self.one_target)

    def with_ordinary_weights(self) -> RowBlocks:
        """The same rows, with weights divided by a power of two if their sum could over- or underflow.

        A least squares fit, whose objective divides by the weight sum, does not change by that.
        """
        if self.weight is None:
            return self
        largest = self.weight.max()
        if 1e-100 <= float(largest) <= 1e100:
            return self
        weight = self.weight / dd.slice_scale(largest)
        return RowBlocks(self._source, self.y, weight, one_target=self.one_target)

    def positive_weight_rows(self) -> RowBlocks:
        """The same, copied where there are others; for few rows only."""
        rows = self.weighted_rows()
        if rows is self:
            return self
        X = torch.cat([block.X for block in rows.dense() if block.X is not None])
        return tensor_blocks(X, rows.y, rows.weight, dtype=self.dtype)

    def raise_if_not_finite(self, estimator_name: str) -> None:
        """Raise scikit-learn's ValueError if X or y holds NaN or infinity; a pass over the data."""
        for block in self:
            X = block.csr if block.csr is not None else _to_numpy(block.X)
            assert_all_finite(X, estimator_name=estimator_name, input_name="X")
        assert_all_finite(_to_numpy(self.y), estimator_name=estimator_name, input_name="y")


def tensor_blocks(
    X: torch.Tensor,
    y: torch.Tensor,
    weight: torch.Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float64,
) -> RowBlocks:
    """Blocks of a floating tensor, whose memory is shared."""
    source = Source(
        X.shape[0],
        X.shape[1],
        dtype,
        lambda start, stop: X[start:stop],
        lambda index: X.index_select(0, index.to(X.device)),
        in_place=True,
    )
    return RowBlocks(source, y, weight)


def as_row_blocks(
    X: Any,  # any data kind: that is what this function is for
    y: Any = None,
    sample_weight: Any = None,
    *,
    device: str = "auto",
    estimator: Any = None,
) -> RowBlocks:
    """Check X, y and weights as scikit-learn does and give them as row blocks on a device.

    Finite values are not checked here: that would be another pass over the data.

    Parameters
    ----------
    X : array-like, data frame, sparse matrix or array, or tensor, of shape (n_samples, n_features)
    y : array-like or tensor of shape (n_samples,) or (n_samples, n_targets), or None
        None stands for no targets (n_targets is 0).
    sample_weight : float, array-like or tensor of shape (n_samples,), or None
    device : str, default="auto"
        ``"auto"`` is the device of X if it is a tensor, else the CPU.
    estimator : estimator or None
        Named in error messages.

    Returns
    -------
    RowBlocks

    Raises
    ------
    ValueError
        Wrong shapes, inconsistent lengths, no rows or features, text or complex data, negative, non-finite
        or all-zero weights, or a device that is not there.
    """
    target = _resolve_device(device, X)
    source = _open(X, target, estimator)
    n_samples = source.n_samples
    if y is None:
        targets = torch.empty((n_samples, 0), dtype=torch.float64, device=target)
    else:
        targets = _open_target(y, target, estimator)
        if len(targets) != n_samples:
            check_consistent_length(np.empty(n_samples), np.empty(len(targets)))
    return RowBlocks(
        source,
        targets[:, None] if targets.ndim == 1 else targets,
        _open_weight(sample_weight, n_samples, target),
        one_target=targets.ndim == 1,
    )


def check_features(estimator: Any, X: Any, *, reset: bool) -> None:
    """Keep the number and the names of the features in `reset`, else compare them with those kept.

    Both as scikit-learn does, whose own function takes longer than the rest of a small fit's checks: arrays,
    which have no names, go without it.
    """
    if type(X) is np.ndarray and X.ndim == 2:
        if reset:
            estimator.n_features_in_ = X.shape[1]
            vars(estimator).pop("feature_names_in_", None)
            return
        known = getattr(estimator, "n_features_in_", None)
        if X.shape[1] == known and not hasattr(estimator, "feature_names_in_"):
            return
    validate_data(estimator, X, reset=reset, skip_check_array=True)


def _rows_per_block(n_columns: int) -> int:
    """Rows of a block: `BLOCK_BYTES`, but at most a quarter of scikit-learn's ``working_memory``."""
    row_bytes = 8 * n_columns
    wanted = max(BLOCK_BYTES // row_bytes, min(WIDE_BLOCK_ROWS, WIDE_BLOCK_BYTES // row_bytes))
    return max(1, min(wanted, int(get_config()["working_memory"] * 2**20 / (4 * row_bytes))))


def _resolve_device(device: str, X: Any) -> torch.device:
    if device == "auto":
        device = str(X.device) if isinstance(X, torch.Tensor) else "cpu"
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device={device!r} is not a device of torch; use 'auto', 'cpu', 'cuda' or 'cuda:1'."
        ) from error
    if target.type not in ("cpu", "cuda"):
        raise ValueError(
            f"device={device!r} cannot be used: fit accumulates in float64, which is made for 'cpu' and "
            "'cuda' only. Use device='cpu'."
        )
    if target.type == "cuda" and (target.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"device={device!r} is not there: torch sees {torch.cuda.device_count()} CUDA devices. "
            "Use device='auto' or 'cpu'."
        )
    return target


def _open(X: Any, device: torch.device, estimator: Any) -> Source:
    """Checks X and gives access to its rows."""

    def checked(rows: Any) -> Any:
        if _is_plain(rows):
            return rows
        return check_array(
            rows, accept_sparse="csr", dtype="numeric", ensure_all_finite=False, estimator=estimator
        )

    if isinstance(X, torch.Tensor):
        return _open_tensor(X, device, checked)
    if _is_frame(X):
        checked(_frame_rows(X, 0, 1) if X.shape[1] else np.empty(X.shape))
        # Every block is made by itself, so a frame of several dtypes is never copied whole.
        dtype = _result_dtype(np.result_type(*map(_column_dtype, X.dtypes)))

        def take(start: int, stop: int) -> torch.Tensor | sparse.csr_array:
            rows = checked(_frame_rows(X, start, stop))
            return sparse.csr_array(rows) if sparse.issparse(rows) else _to_tensor(rows, device)

        def gather(index: torch.Tensor) -> torch.Tensor:
            rows = checked(X.iloc[index.numpy()] if hasattr(X, "iloc") else X[index.numpy()])
            if sparse.issparse(rows):
                return _densify(sparse.csr_array(rows), device)
            return _to_tensor(rows, device)

        return Source(X.shape[0], X.shape[1], dtype, take, gather)
    X = checked(X)
    n_samples, n_features = X.shape
    dtype = _result_dtype(X.dtype)
    if sparse.issparse(X):
        csr = sparse.csr_array(X)
        inside = csr.dtype if csr.dtype in (np.float32, np.float64) else np.float64
        density = csr.nnz / (n_samples * n_features)
        return Source(
            n_samples,
            n_features,
            dtype,
            lambda start, stop: csr[start:stop].astype(inside, copy=False),
            lambda index: _densify(csr[index.numpy()].astype(inside, copy=False), device),
            density=density,
        )
    if not _is_shareable(X):
        return Source(
            n_samples,
            n_features,
            dtype,
            lambda start, stop: _to_tensor(X[start:stop], device),
            lambda index: _to_tensor(X[index.numpy()], device),
        )
    shared = torch.from_numpy(X)
    return Source(
        n_samples,
        n_features,
        dtype,
        lambda start, stop: shared[start:stop].to(device),
        lambda index: shared.index_select(0, index).to(device),
        in_place=device.type == "cpu",
    )


def _open_tensor(X: torch.Tensor, device: torch.device, checked: Callable[[Any], Any]) -> Source:
    if X.layout is not torch.strided or X.is_complex():
        raise ValueError(
            f"Complex data not supported, nor are sparse tensors: got {X.layout} of {X.dtype}. Give a dense "
            "real tensor, or a scipy.sparse array."
        )
    if X.ndim < 2:
        raise ValueError(
            f"Expected 2D array, got {X.ndim}D array instead: a tensor of shape {tuple(X.shape)}. Reshape it "
            "with X.reshape(-1, 1) for one feature or X.reshape(1, -1) for one sample."
        )
    # An array of this shape without memory of its own meets scikit-learn's checks of shape.
    checked(np.broadcast_to(np.float64(0), tuple(X.shape)))
    detached = X.detach()
    dtype = torch.float32 if X.dtype is torch.float32 else torch.float64
    inside = X.dtype if X.dtype in (torch.float32, torch.float64) else torch.float64

    def take(start: int, stop: int) -> torch.Tensor:
        return detached[start:stop].to(device=device, dtype=inside)

    def gather(index: torch.Tensor) -> torch.Tensor:
        return detached.index_select(0, index.to(X.device)).to(device=device, dtype=inside)

    in_place = X.dtype is inside and X.device == device
    return Source(X.shape[0], X.shape[1], dtype, take, gather, in_place=in_place)


def _is_plain(X: Any) -> bool:
    """Whether X is what `check_array` would give back unchanged; asking it takes longer than a small fit."""
    return type(X) is np.ndarray and X.dtype in (np.float32, np.float64) and X.ndim == 2 and X.size > 0


def _is_frame(X: Any) -> bool:
    return hasattr(X, "dtypes") and hasattr(X, "columns") and (hasattr(X, "iloc") or hasattr(X, "slice"))


def _frame_rows(X: Any, start: int, stop: int) -> Any:
    return X.iloc[start:stop] if hasattr(X, "iloc") else X.slice(start, stop - start)


def _column_dtype(dtype: Any) -> Any:
    """The NumPy dtype of a frame's column; float64 where it has none of its own (polars, nullable)."""
    if isinstance(dtype, np.dtype):
        return dtype if dtype.kind == "f" else np.dtype(np.float64)
    return np.dtype(np.float32) if str(dtype) == "Float32" else np.dtype(np.float64)


def _result_dtype(dtype: np.dtype) -> torch.dtype:
    return torch.float32 if dtype == np.float32 else torch.float64


def _is_shareable(X: np.ndarray) -> bool:
    """Whether torch can read this memory in place: floats, writeable, non-negative whole strides."""
    return (
        X.dtype in (np.float32, np.float64)
        and X.dtype.isnative
        and X.flags.writeable
        and all(s >= 0 and s % X.itemsize == 0 for s in X.strides)
    )


def _to_tensor(rows: np.ndarray, device: torch.device) -> torch.Tensor:
    """A float32 or float64 tensor of these rows, copied unless torch can share them."""
    if not _is_shareable(rows):
        rows = np.array(rows, dtype=np.float32 if rows.dtype == np.float32 else np.float64)
    return torch.from_numpy(rows).to(device)


def _to_numpy(X: torch.Tensor | None) -> np.ndarray:
    assert X is not None
    return X.detach().cpu().numpy()


def _first_positive(weight: torch.Tensor) -> int:
    """Where the first positive weight is; mostly at the front, so that a search of all would cost more."""
    front = torch.nonzero(weight[:1024] > 0)
    return int(front[0, 0] if len(front) else torch.nonzero(weight > 0)[0, 0])


def _densify(X: sparse.csr_array, device: torch.device) -> torch.Tensor:
    return torch.from_numpy(X.toarray()).to(device)


def _refuse_complex(values: torch.Tensor, name: str) -> None:
    if values.is_complex():
        raise ValueError(
            f"Complex data not supported: {name} is a tensor of {values.dtype}; give a real one."
        )


def _open_target(y: Any, device: torch.device, estimator: Any) -> torch.Tensor:
    if isinstance(y, torch.Tensor):
        _refuse_complex(y, "y")
        columns = y.detach().to(device=device, dtype=torch.float64)
        if columns.ndim not in (1, 2):
            raise ValueError(
                f"y should be a 1d or 2d tensor, got a tensor of shape {tuple(y.shape)} instead."
            )
    else:
        array = y
        if not (type(y) is np.ndarray and y.dtype in (np.float32, np.float64)):
            array = check_array(
                y,
                ensure_2d=False,
                dtype="numeric",
                ensure_all_finite=False,
                ensure_min_samples=0,
                ensure_min_features=0,
                input_name="y",
                estimator=estimator,
            )
        if array.ndim not in (1, 2):
            raise ValueError(f"y should be a 1d or 2d array, got an array of shape {array.shape} instead.")
        columns = _to_tensor(array, device).to(torch.float64)
    if columns.ndim == 2 and columns.shape[1] == 0:
        raise ValueError("y has 0 columns; give at least one target.")
    return columns


def _open_weight(sample_weight: Any, n_samples: int, device: torch.device) -> torch.Tensor | None:
    if sample_weight is None:
        return None
    if isinstance(sample_weight, torch.Tensor):
        _refuse_complex(sample_weight, "sample_weight")
        weight = sample_weight.detach().to(device=device, dtype=torch.float64)
        weight = weight if weight.ndim else weight.expand(n_samples)
    else:
        array = np.asarray(sample_weight)
        if array.ndim == 0:
            array = np.full(n_samples, array)
        if array.dtype != np.float64:
            array = check_array(
                array,
                dtype=np.float64,
                ensure_2d=False,
                allow_nd=True,
                ensure_all_finite=False,
                ensure_min_samples=0,
                input_name="sample_weight",
            )
        weight = _to_tensor(array, device)
    if weight.ndim != 1:
        raise ValueError(f"Sample weights must be 1D array or scalar, got shape {tuple(weight.shape)}.")
    if len(weight) != n_samples:
        raise ValueError(f"sample_weight.shape == {tuple(weight.shape)}, expected {(n_samples,)}!")
    smallest, largest = float(weight.min()), float(weight.max())
    if not np.isfinite(smallest + largest):
        assert_all_finite(_to_numpy(weight), input_name="sample_weight")
    if smallest < 0:
        raise ValueError(
            f"Negative values in data passed to `sample_weight`: the least is {smallest:g}, and weights must "
            "be 0 or more."
        )
    if largest == 0:
        raise ValueError("Every sample_weight is zero: at least one weight must be positive.")
    return weight
