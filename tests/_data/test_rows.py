"""One door for the data: every kind of X, y and weights gives the model of the plain array."""

import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse
from sklearn import config_context

from torchlinreg import TorchLinearRegressor
from torchlinreg._data.rows import RowBlocks, as_row_blocks

ROOT = Path(__file__).parents[2]
N_SAMPLES, N_FEATURES = 150, 4

INTEGERS = ["uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64"]
FLOATS = ["float16", "float32", "float64", "longdouble"]
FOREIGN = [">f8", ">f4", ">f2", ">i4", ">i8", ">u2"]
SPARSE_FORMATS = ["csr", "csc", "coo", "bsr", "dia", "dok", "lil"]
TENSOR_DTYPES = ["float16", "bfloat16", "float32", "float64", "uint8", "int8", "int16", "int32"]


def read_only(array):
    copy = np.array(array)
    copy.flags.writeable = False
    return copy


def every_second(array):
    """A view that skips elements along each axis."""
    wide = np.full([2 * n for n in array.shape], np.nan)
    view = wide[tuple(slice(None, None, 2) for _ in array.shape)]
    view[...] = array
    return view


def reversed_view(array):
    """A view with negative strides."""
    backwards = tuple(slice(None, None, -1) for _ in array.shape)
    return np.ascontiguousarray(array[backwards])[backwards]


def on_disk(array, mode):
    file = Path(tempfile.mkdtemp()) / "array.npy"
    np.save(file, array)
    return np.load(file, mmap_mode=mode)


def packed(array):
    """A float64 field inside records of 9 bytes: strides that are no multiple of the item."""
    fields = [("flag", "u1"), ("values", "f8")]
    records = np.zeros(array.shape, dtype=np.dtype(fields))
    records["values"] = array
    return records["values"]


def mixed_frame(X):
    columns = [X[:, 0], X[:, 1].astype(np.int8), X[:, 2].astype(np.float32), X[:, 3].astype(object)]
    return pd.DataFrame(dict(zip("abcd", columns, strict=True)))


def nullable_frame(X):
    types = {"a": "Int64", "b": "Float64", "c": "UInt8", "d": "Float32"}
    return pd.DataFrame(X, columns=list("abcd")).astype(types)


def arrow_frame(X):
    pytest.importorskip("pyarrow")
    return pd.DataFrame(X).astype("int64[pyarrow]")


def sparse_frame(X):
    return pd.DataFrame.sparse.from_spmatrix(sparse.csr_matrix(X))


def polars_frame(X):
    polars = pytest.importorskip("polars")
    return polars.DataFrame(X, schema=list("abcd"))


def polars_mixed_frame(X):
    polars = pytest.importorskip("polars")
    types = [polars.Float32, polars.Int16, polars.Float64, polars.UInt8]
    return polars_frame(X).cast(dict(zip("abcd", types, strict=True)))


def sparse_of(name, X):
    with warnings.catch_warnings():  # so many diagonals are no job for "dia"
        warnings.simplefilter("ignore", sparse.SparseEfficiencyWarning)
        return getattr(sparse, name)(X)


def csr_with_duplicates(X):
    """Every entry stored as two halves, backwards, with indices of 64 bits."""
    n_rows, n_columns = X.shape
    data = np.repeat(X[:, ::-1] / 2, 2, axis=1).ravel()
    indices = np.tile(np.repeat(np.arange(n_columns)[::-1], 2), n_rows).astype(np.int64)
    pointers = np.arange(n_rows + 1, dtype=np.int64) * 2 * n_columns
    return sparse.csr_array((data, indices, pointers), shape=X.shape)


def read_only_csr(X):
    csr = sparse.csr_array(X)
    for part in (csr.data, csr.indices, csr.indptr):
        part.flags.writeable = False
    return csr


def tensor(X):
    return torch.from_numpy(np.array(X))


KINDS = {
    "list": np.ndarray.tolist,
    "tuple": lambda X: tuple(map(tuple, X.tolist())),
    "list of integers": lambda X: X.astype(int).tolist(),
    "list of arrays": list,
    "Fortran order": np.asfortranarray,
    "transposed": lambda X: np.ascontiguousarray(X.T).T,
    "every second": every_second,
    "inner columns": lambda X: np.hstack([X, X])[:, 2:6][:, [2, 3, 0, 1]],
    "column slice": lambda X: np.hstack([X[:, :1], X, X])[:, 1:5],
    "reversed": reversed_view,
    "reversed float32": lambda X: reversed_view(X).astype(np.float32)[::-1][::-1],
    "packed": packed,
    "read-only": read_only,
    "read-only float32": lambda X: read_only(X.astype(np.float32)),
    "read-only Fortran order": lambda X: read_only(np.asfortranarray(X)),
    "bool": lambda X: X.astype(bool),
    "objects": lambda X: X.astype(object),
    "memmap r": lambda X: on_disk(X, "r"),
    "memmap c": lambda X: on_disk(X, "c"),
    "memmap r+ int16": lambda X: on_disk(X.astype(np.int16), "r+"),
    **{name: lambda X, name=name: X.astype(name) for name in INTEGERS + FLOATS + FOREIGN},
    "frame": pd.DataFrame,
    "frame float32": lambda X: pd.DataFrame(X.astype(np.float32)),
    "frame of integers": lambda X: pd.DataFrame(X.astype(np.int32)),
    "frame bool": lambda X: pd.DataFrame(X.astype(bool)),
    "frame of columns": lambda X: pd.DataFrame({name: X[:, i] for i, name in enumerate("abcd")}),
    "frame, odd index": lambda X: pd.DataFrame(X, index=np.arange(len(X))[::-1] % 7),
    "mixed frame": mixed_frame,
    "nullable frame": nullable_frame,
    "nullable frame bool": lambda X: pd.DataFrame(X).astype("boolean"),
    "arrow frame": arrow_frame,
    "sparse frame": sparse_frame,
    "polars": polars_frame,
    "polars mixed": polars_mixed_frame,
    "polars bool": lambda X: polars_frame(X.astype(bool)),
    **{
        f"sparse {name} {end}": lambda X, name=f"{name}_{end}": sparse_of(name, X)
        for name in SPARSE_FORMATS
        for end in ("array", "matrix")
    },
    "sparse float32": lambda X: sparse.csr_array(X.astype(np.float32)),
    "sparse int8": lambda X: sparse.csr_array(X.astype(np.int8)),
    "sparse int64": lambda X: sparse.csc_matrix(X.astype(np.int64)),
    "sparse bool": lambda X: sparse.csr_array(X.astype(bool)),
    "sparse with duplicates": csr_with_duplicates,
    "sparse read-only": read_only_csr,
    **{
        f"tensor {name}": lambda X, name=name: tensor(X).to(getattr(torch, name))
        for name in [*TENSOR_DTYPES, "int64", "bool"]
    },
    "tensor requires grad": lambda X: tensor(X).requires_grad_(),
    "tensor parameter": lambda X: torch.nn.Parameter(tensor(X)),
    "tensor with history": lambda X: tensor(X).requires_grad_() * 1.0,
    "tensor transposed": lambda X: tensor(X.T).T,
    "tensor slice": lambda X: torch.hstack([tensor(X), tensor(X)])[:, 1:5][:, [3, 0, 1, 2]],
    "tensor strided": lambda X: tensor(every_second(X).base)[::2, ::2],
}


def problem(name="", n_samples=N_SAMPLES, n_features=N_FEATURES):
    """Small whole numbers, which every dtype holds; 0 and 1 for the boolean kinds."""
    rng = np.random.default_rng(7)
    X = rng.integers(0, 2 if "bool" in name else 100, (n_samples, n_features)).astype(np.float64)
    weight = rng.uniform(0.5, 2, n_samples)
    return X, 3.0 + X @ np.arange(1.0, n_features + 1) + rng.standard_normal(n_samples), weight


def is_single(X):
    """Whether the result should be float32, too: where all of X is."""
    dtypes = X.dtypes if hasattr(X, "dtypes") else [getattr(X, "dtype", None)]
    return all(str(dtype) in ("float32", "torch.float32") for dtype in dtypes)


def as_float64(X):
    """A plain copy, by a way of its own."""
    if isinstance(X, torch.Tensor):
        return X.detach().to(torch.float64).numpy().copy()
    if sparse.issparse(X):
        return X.toarray().astype(np.float64)
    return np.array(X).astype(np.float64)


def assert_like(found, expected, *, single):
    assert np.asarray(found).dtype == (np.float32 if single else np.float64)
    np.testing.assert_allclose(found, expected, rtol=1.2e-7 if single else 1e-11)


@pytest.mark.filterwarnings("ignore:X has feature names", "ignore:X does not have valid feature")
@pytest.mark.parametrize("working_memory", [1024, 0.01], ids=["one block", "blocks"])
@pytest.mark.parametrize("kind", KINDS)
class TestKindsOfX:
    def test_same_model(self, kind, working_memory):
        X, y, weight = problem(kind)
        given = KINDS[kind](X)
        expected = TorchLinearRegressor().fit(X, y, sample_weight=weight)
        with config_context(working_memory=working_memory):
            reg = TorchLinearRegressor().fit(given, y, sample_weight=weight)
        assert_like(reg.coef_, expected.coef_, single=is_single(given))
        assert_like(reg.intercept_, expected.intercept_, single=is_single(given))
        np.testing.assert_array_equal(as_float64(given), X)

    def test_same_model_of_parts(self, kind, working_memory):
        X, y, _ = problem(kind)
        given = KINDS[kind](X)
        expected = TorchLinearRegressor().fit(X, y)
        with config_context(working_memory=working_memory):
            reg = TorchLinearRegressor().partial_fit(given, y)
        assert_like(reg.coef_, expected.coef_, single=is_single(given))
        np.testing.assert_array_equal(as_float64(given), X)

    def test_same_predictions(self, kind, working_memory):
        X, y, _ = problem(kind)
        reg = TorchLinearRegressor().fit(X, y)
        given = KINDS[kind](X)
        with config_context(working_memory=working_memory):
            found = reg.predict(given)
        assert isinstance(found, torch.Tensor) == isinstance(given, torch.Tensor)
        assert found.shape == (N_SAMPLES,)
        assert str(found.dtype).endswith("float64")
        np.testing.assert_allclose(np.asarray(found), X @ reg.coef_ + reg.intercept_, rtol=1e-13)
        np.testing.assert_array_equal(as_float64(given), X)


@pytest.mark.parametrize("end", ["array", "matrix"])
@pytest.mark.parametrize("name", SPARSE_FORMATS)
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_few_stored_entries(name, end, fit_intercept):
    """Sparse enough for moments straight from CSR; weighted, several targets, several blocks."""
    rng = np.random.default_rng(0)
    X = rng.uniform(1, 2, (400, 8)) * (rng.random((400, 8)) < 0.06)
    Y = np.column_stack([X.sum(axis=1) + rng.standard_normal(400), 1e6 + rng.standard_normal(400)])
    weight = rng.integers(0, 3, 400)
    expected = TorchLinearRegressor(fit_intercept=fit_intercept).fit(X, Y, sample_weight=weight)
    given = sparse_of(f"{name}_{end}", X)
    with config_context(working_memory=0.03):
        reg = TorchLinearRegressor(fit_intercept=fit_intercept).fit(given, Y, sample_weight=weight)
        found = reg.predict(given)
    np.testing.assert_allclose(reg.coef_, expected.coef_, rtol=1e-10)
    np.testing.assert_allclose(reg.intercept_, expected.intercept_, rtol=1e-10)
    np.testing.assert_allclose(found, expected.predict(X), rtol=1e-10, atol=1e-10)
    assert given.format == name
    np.testing.assert_array_equal(given.toarray(), X)


def test_the_parts_of_a_sparse_matrix_stay_as_they_are():
    X, y, weight = problem()
    given, untouched = csr_with_duplicates(X), csr_with_duplicates(X)
    TorchLinearRegressor().fit(given, y, sample_weight=weight).predict(given)
    for part in ("data", "indices", "indptr"):
        np.testing.assert_array_equal(getattr(given, part), getattr(untouched, part))
        assert getattr(given, part).dtype == getattr(untouched, part).dtype


def test_stored_zeros_and_empty_rows():
    X = sparse.csr_array((np.array([0.0, 2.0, 0.0, 1.0]), ([0, 1, 2, 5], [0, 0, 1, 1])), (40, 2))
    y = np.arange(40.0)
    reg = TorchLinearRegressor().fit(X, y)
    expected = TorchLinearRegressor().fit(X.toarray(), y)
    np.testing.assert_allclose(reg.coef_, expected.coef_, rtol=1e-12)


def test_expanded_tensors():
    """Stride 0, hence columns that are all the same: the coefficient is shared out."""
    x = torch.arange(30, dtype=torch.float64)
    reg = TorchLinearRegressor().fit(x[:, None].expand(30, 4), 2 * x + 1)
    np.testing.assert_allclose(reg.coef_, [0.5] * 4, rtol=1e-12)
    weighted = TorchLinearRegressor().fit(x[:, None], 2 * x + 1, sample_weight=torch.ones(()).expand(30))
    np.testing.assert_allclose(weighted.coef_, [2], rtol=1e-12)


def test_tensor_keeps_its_gradient():
    X, y, weight = (torch.from_numpy(part).requires_grad_() for part in problem())
    TorchLinearRegressor().fit(X, y, sample_weight=weight)
    assert X.grad is None
    assert X.requires_grad
    prediction = TorchLinearRegressor().fit(X, y).predict(X)
    assert not prediction.requires_grad


@pytest.mark.parametrize("change", [read_only, lambda coef: coef[::-1], lambda coef: coef[::-1][::-1]])
def test_predictions_of_coefficients_in_any_memory(change):
    X, y, _ = problem()
    reg = TorchLinearRegressor().fit(X, y)
    reg.coef_ = change(reg.coef_)
    np.testing.assert_allclose(reg.predict(X), X @ reg.coef_ + reg.intercept_, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("fitted_dtype", [np.float32, np.float64])
@pytest.mark.parametrize("as_kind", [np.asarray, pd.DataFrame, torch.from_numpy])
def test_predictions_are_float32_where_data_and_coefficients_are(dtype, fitted_dtype, as_kind):
    X, y, _ = problem()
    reg = TorchLinearRegressor().fit(as_kind(X.astype(fitted_dtype)), y)
    found = reg.predict(as_kind(X.astype(dtype)))
    expected = "float32" if dtype == fitted_dtype == np.float32 else "float64"
    assert str(found.dtype).removeprefix("torch.") == expected
    tolerance = 1e-5 if np.float32 in (dtype, fitted_dtype) else 1e-13
    np.testing.assert_allclose(found, X @ reg.coef_ + reg.intercept_, rtol=tolerance)


Y_KINDS = {
    "list": np.ndarray.tolist,
    "tuple": lambda y: tuple(y.tolist()),
    "int64": lambda y: y.astype(np.int64),
    "uint8": lambda y: y.astype(np.uint8),
    "bool": lambda y: y.astype(bool),
    "float16": lambda y: y.astype(np.float16),
    "float32": lambda y: y.astype(np.float32),
    "longdouble": lambda y: y.astype(np.longdouble),
    "big-endian": lambda y: y.astype(">f8"),
    "objects": lambda y: y.astype(object),
    "read-only": read_only,
    "every second": every_second,
    "reversed": reversed_view,
    "memmap": lambda y: on_disk(y, "r"),
    "Series": lambda y: pd.Series(y, index=np.arange(len(y))[::-1]),
    "Series Int64": lambda y: pd.Series(y).astype("Int64"),
    "Series boolean": lambda y: pd.Series(y.astype(bool)).astype("boolean"),
    "polars Series": lambda y: pytest.importorskip("polars").Series(y),
    "tensor": tensor,
    "tensor float32": lambda y: tensor(y).float(),
    "tensor int64": lambda y: tensor(y).long(),
    "tensor bool": lambda y: tensor(y).bool(),
    "tensor requires grad": lambda y: tensor(y).requires_grad_(),
    "tensor strided": lambda y: tensor(np.repeat(y, 2))[::2],
}


@pytest.mark.parametrize("as_X", [np.asarray, torch.from_numpy, pd.DataFrame, sparse.csr_array])
@pytest.mark.parametrize("kind", Y_KINDS)
class TestKindsOfTargetsAndWeights:
    def whole_numbers(self, kind):
        return np.random.default_rng(3).integers(0, 2 if "bool" in kind else 99, N_SAMPLES) * 1.0

    def test_target(self, kind, as_X):
        X, _, _ = problem()
        y = self.whole_numbers(kind)
        given = Y_KINDS[kind](y)
        expected = TorchLinearRegressor().fit(X, y)
        reg = TorchLinearRegressor().fit(as_X(X), given)
        assert_like(reg.coef_, expected.coef_, single=False)
        assert_like(reg.intercept_, expected.intercept_, single=False)
        np.testing.assert_array_equal(as_float64(given), y)

    def test_weight(self, kind, as_X):
        X, y, _ = problem()
        weight = self.whole_numbers(kind)
        given = Y_KINDS[kind](weight)
        expected = TorchLinearRegressor().fit(X, y, sample_weight=weight)
        reg = TorchLinearRegressor().fit(as_X(X), y, sample_weight=given)
        assert_like(reg.coef_, expected.coef_, single=False)
        np.testing.assert_array_equal(as_float64(given), weight)


@pytest.mark.parametrize("weight", [2, 0.25, np.float32(3), np.array(2.0), torch.tensor(2.0)])
def test_one_weight_for_all_rows(weight):
    X, y, _ = problem()
    expected = TorchLinearRegressor(alpha=0.5).fit(X, y)
    reg = TorchLinearRegressor(alpha=0.5).fit(X, y, sample_weight=weight)
    assert_like(reg.coef_, expected.coef_, single=False)


TWO_DIMENSIONAL = {
    "array": np.asarray,
    "Fortran order": np.asfortranarray,
    "list": np.ndarray.tolist,
    "integers": lambda Y: Y.astype(int),
    "frame": pd.DataFrame,
    "mixed frame": lambda Y: pd.DataFrame({str(i): y for i, y in enumerate(Y.T)}).astype({"0": "Int32"}),
    "polars": lambda Y: pytest.importorskip("polars").DataFrame(Y),
    "tensor": tensor,
    "tensor transposed": lambda Y: tensor(Y.T).T,
}


@pytest.mark.parametrize("as_X", [np.asarray, torch.from_numpy, pd.DataFrame])
@pytest.mark.parametrize("n_targets", [1, 3])
@pytest.mark.parametrize("kind", TWO_DIMENSIONAL)
def test_two_dimensional_targets(kind, n_targets, as_X):
    X, _, _ = problem()
    Y = np.random.default_rng(2).integers(0, 50, (N_SAMPLES, n_targets)).astype(float)
    reg = TorchLinearRegressor().fit(as_X(X), TWO_DIMENSIONAL[kind](Y))
    assert reg.coef_.shape == (n_targets, N_FEATURES)
    assert reg.intercept_.shape == (n_targets,)
    assert reg.predict(as_X(X)).shape == (N_SAMPLES, n_targets)
    for target in range(n_targets):
        single = TorchLinearRegressor().fit(X, Y[:, target])
        np.testing.assert_allclose(reg.coef_[target], single.coef_, rtol=1e-11)
        np.testing.assert_allclose(reg.intercept_[target], single.intercept_, rtol=1e-11)


@pytest.mark.parametrize("as_X", [np.asarray, torch.from_numpy, pd.DataFrame])
@pytest.mark.parametrize("as_y", [np.asarray, torch.from_numpy, pd.Series, list])
def test_one_dimension_in_one_dimension_out(as_X, as_y):
    """The (n, 1) - (n,) trap: an error of broadcasting would give R2 near 0."""
    X, y, _ = problem()
    reg = TorchLinearRegressor().fit(as_X(X), as_y(y))
    assert reg.coef_.shape == (N_FEATURES,)
    assert np.ndim(reg.intercept_) == 0
    assert reg.predict(as_X(X)).shape == (N_SAMPLES,)
    assert reg.score(X if as_X is pd.DataFrame else as_X(X), y) > 0.99


@pytest.mark.parametrize("frame", [pd.DataFrame, polars_frame])
def test_names_of_frames(frame):
    X, y, _ = problem()
    names = list("abcd")
    given = frame(X) if frame is polars_frame else frame(X, columns=names)
    reg = TorchLinearRegressor().fit(given, y)
    assert reg.feature_names_in_.tolist() == names
    with pytest.raises(ValueError, match="must be in the same order"):
        reg.predict(given[list("bacd")])


class Taken:
    """Counts the rows that are read, block by block."""

    def __init__(self, monkeypatch):
        self.blocks = []
        self.heads = []
        rows, head = RowBlocks.rows, RowBlocks.head

        def counting_rows(blocks, start, stop):
            self.blocks.append(stop - start)
            return rows(blocks, start, stop)

        def counting_head(blocks, n_rows):
            self.heads.append(n_rows)
            return head(blocks, n_rows)

        monkeypatch.setattr(RowBlocks, "rows", counting_rows)
        monkeypatch.setattr(RowBlocks, "head", counting_head)

    def passes(self, n_samples):
        return (sum(self.blocks) + sum(self.heads)) / n_samples


@pytest.fixture
def taken(monkeypatch):
    return Taken(monkeypatch)


@pytest.mark.parametrize("as_X", [np.asarray, torch.from_numpy, pd.DataFrame, sparse.csr_array])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_targets", [1, 2])
class TestPasses:
    """The first rows are looked at once more, to choose a shift; that is all."""

    n_samples = 40_000

    def given(self, as_X, n_targets, weighted):
        rng = np.random.default_rng(0)
        X = rng.standard_normal((self.n_samples, 3))
        Y = 3 + X @ rng.standard_normal((3, n_targets)) + rng.standard_normal((self.n_samples, n_targets))
        return as_X(X), Y, rng.uniform(1, 2, self.n_samples) if weighted else None

    def test_clean_data_are_read_once(self, as_X, n_targets, weighted, taken):
        X, Y, weight = self.given(as_X, n_targets, weighted)
        reg = TorchLinearRegressor().fit(X, Y, sample_weight=weight)
        assert 1 <= taken.passes(self.n_samples) < 1.05
        assert reg.n_iter_ == 1

    def test_partial_fit_reads_once(self, as_X, n_targets, weighted, taken):
        X, Y, weight = self.given(as_X, n_targets, weighted)
        TorchLinearRegressor().partial_fit(X, Y, sample_weight=weight)
        assert 1 <= taken.passes(self.n_samples) < 1.05

    def test_predict_reads_once(self, as_X, n_targets, weighted, taken):
        X, Y, weight = self.given(as_X, n_targets, weighted)
        reg = TorchLinearRegressor().fit(X, Y, sample_weight=weight)
        taken.blocks.clear()
        reg.predict(X)
        assert 1 <= taken.passes(self.n_samples) < 1.05

    def test_n_iter_counts_the_passes(self, as_X, n_targets, weighted, taken):
        X, Y, weight = self.given(np.asarray, n_targets, weighted)
        X[:, 2] = X[:, 0] + 1e-7 * X[:, 2]
        reg = TorchLinearRegressor().fit(as_X(X), Y, sample_weight=weight)
        assert reg.n_iter_ > 1
        assert taken.passes(self.n_samples) == pytest.approx(reg.n_iter_, abs=0.05)


@pytest.mark.every(3)
@pytest.mark.parametrize("kind", ["Fortran order", "int16", "mixed frame", "tensor int32", "polars"])
@pytest.mark.parametrize("working_memory", [1e-6, 0.01, 0.1])
def test_blocks_keep_to_working_memory(kind, working_memory, taken):
    n_samples = 200 if working_memory < 1e-3 else 3000  # single rows, as fewer are not possible
    X, y, weight = problem(n_samples=n_samples)
    expected = TorchLinearRegressor().fit(X, y, sample_weight=weight)
    taken.blocks.clear()
    given = KINDS[kind](X)
    with config_context(working_memory=working_memory):
        reg = TorchLinearRegressor().fit(given, y, sample_weight=weight)
        if kind != "Fortran order":  # floats are predicted for in place, without blocks
            reg.predict(given)
    assert max(taken.blocks) <= max(1, working_memory * 2**20 / (8 * (N_FEATURES + 1)))
    np.testing.assert_allclose(reg.coef_, expected.coef_, rtol=1e-11)


def test_converted_blocks_of_large_data_are_a_few_mebibytes(taken):
    """Those of floats are views, of which moments take more at once."""
    X = np.random.default_rng(0).integers(-9, 10, (200_000, 20))
    X[:, 0] = 1
    TorchLinearRegressor().fit(X, X.sum(axis=1))
    assert max(taken.blocks) * 20 * 8 <= 16 * 2**20
    assert len(taken.blocks) >= 3


SHARED = {
    "C order": np.ascontiguousarray,
    "Fortran order": np.asfortranarray,
    "float32": lambda X: X.astype(np.float32),
    "every second": every_second,
    "memmap c": lambda X: on_disk(X, "c"),
    "memmap r+": lambda X: on_disk(X, "r+"),
}


@pytest.mark.parametrize("kind", SHARED)
def test_blocks_share_the_memory_of_floats(kind):
    X = SHARED[kind](problem()[0])
    rows = as_row_blocks(X).rows(5, 9).X
    assert np.shares_memory(rows.numpy(), X)


def test_blocks_share_the_memory_of_tensors():
    X = torch.from_numpy(problem()[0])
    assert as_row_blocks(X).rows(5, 9).X.data_ptr() == X[5:].data_ptr()


# Fits each kind of data once for warming up and once for measuring its peak.
PEAKS = """
import sys
import numpy as np, pandas as pd, torch
from torchlinreg import TorchLinearRegressor

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024

def frame(X):
    integers = {i: X[:, i].astype(np.int32) for i in range(4)}
    return pd.DataFrame(integers | {i: X[:, i].copy() for i in range(4, 8)})

def read_only(X):
    X = X.copy()
    X.flags.writeable = False
    return X

KINDS = {
    "C order": lambda X: X.copy(),
    "Fortran order": np.asfortranarray,
    "int8": lambda X: X.astype(np.int8),
    "bool": lambda X: X.astype(bool),
    "float16": lambda X: X.astype(np.float16),
    "float32": lambda X: X.astype(np.float32),
    "big-endian": lambda X: X.astype(">f8"),
    "read-only": read_only,
    "reversed": lambda X: X[::-1].copy()[::-1],
    "frame": pd.DataFrame,
    "mixed frame": frame,
    "tensor int8": lambda X: torch.from_numpy(X.astype(np.int8)),
    "tensor transposed": lambda X: torch.from_numpy(X.T.copy()).T,
}
n = 700_000
X = np.random.default_rng(0).integers(0, 9, (n, 8)).astype(float)
y = X.sum(axis=1) + np.arange(n) % 3
weight = 1.0 + np.arange(n) % 2
for name, kind in KINDS.items():
    given = kind(X)
    for rows in (1000, n):
        open("/proc/self/clear_refs", "w").write("5")
        before = peak()
        reg = TorchLinearRegressor().fit(given[:rows], y[:rows], sample_weight=weight[:rows])
        reg.predict(given[:rows])
    print(name, peak() - before, sep=":")
"""


@pytest.mark.exhaustive
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads Linux's /proc")
def test_no_kind_is_copied_whole():
    """X is 43 MiB as float64; the predictions are 5 MiB, and a few blocks come on top."""
    done = subprocess.run(
        [sys.executable, "-c", PEAKS], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    peaks = {name: float(size) for name, size in (row.split(":") for row in done.stdout.split("\n") if row)}
    assert len(peaks) == 13
    assert {name: size for name, size in peaks.items() if size > 30} == {}


@pytest.mark.parametrize("n_targets", [None, 2])
def test_score_of_tensors_is_that_of_arrays(n_targets):
    rng = np.random.default_rng(0)
    X = rng.standard_normal((20, 3))
    y = rng.standard_normal(20 if n_targets is None else (20, n_targets))
    weight = rng.uniform(1, 2, 20)
    reg = TorchLinearRegressor().fit(X, y)
    tensors = [torch.tensor(a, requires_grad=True) for a in (X, y, weight)]
    assert reg.score(*tensors) == pytest.approx(reg.score(X, y, weight), rel=1e-14)


@pytest.mark.parametrize("which", ["X", "y", "sample_weight"])
def test_complex_tensors_are_refused(which):
    given = {"X": torch.ones(5, 2), "y": torch.arange(5.0), "sample_weight": torch.ones(5)}
    given[which] = given[which] + 1j
    with pytest.raises(ValueError, match="Complex data not supported"):
        TorchLinearRegressor().fit(**given)


def test_coefficients_beyond_float32_are_refused():
    X = np.array([[1e-30], [2e-30], [3e-30]], dtype=np.float32)
    with pytest.raises(ValueError, match="exceed float32"):
        TorchLinearRegressor().fit(X, np.array([1e20, 2e20, 3e20]))
