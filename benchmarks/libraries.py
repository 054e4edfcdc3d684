"""Least squares as each library offers it: one function per library, all of one signature.

A function takes `Data` and returns the `Solution`; what it has to do for that, such as appending a
column of ones, is part of its time. `LIBRARIES` says which functions can take which data.
"""

import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import numpy as np
import scipy.sparse
import torch
from sklearn.linear_model import LinearRegression, Ridge

from benchmarks.synthetic import Data, Shape, Solution
from torchlinreg import TorchLinearRegressor

OURS = "TorchLinearRegressor"
Kind = Literal["dense", "weighted", "sparse", "cuda"]


class Library(NamedTuple):
    """A way to fit a straight model.

    Parameters
    ----------
    name : str
        What tables call it.
    call : str
        The call that is made.
    package : str
        The module that has to be installed.
    fit : callable of Data returning Solution
        The fit.
    kinds : frozenset of {"dense", "weighted", "sparse", "cuda"}
        The data that it takes; weighted data are dense, CUDA data are dense tensors.
    estimator : bool, default=True
        Whether it has scikit-learn's interface, hence validates its input as ours does. A routine
        does not, and is quicker by that at 25 rows.
    one_feature : bool, default=False
        Whether it takes one feature only.
    max_work : float, default=inf
        The greatest n_samples * n_features^2 at which it ends in reasonable time.
    """

    name: str
    call: str
    package: str
    fit: Callable[[Data], Solution]
    kinds: frozenset[Kind]
    estimator: bool = True
    one_feature: bool = False
    max_work: float = float("inf")


def ours(data: Data) -> Solution:
    """Fit `TorchLinearRegressor` with its defaults, on the device that tensors are on."""
    return _fit(TorchLinearRegressor(), data)


def ours_from_host(data: Data) -> Solution:
    """Fit `TorchLinearRegressor` on CUDA to arrays on the host."""
    return _fit(TorchLinearRegressor(device="cuda"), data)


def linear_regression(data: Data) -> Solution:
    """Fit `LinearRegression`, with a sharper `tol` where it iterates (sparse X).

    The default tol=1e-6 leaves errors of about 1e-6 there; 1e-9 costs a few iterations.
    """
    sparse = scipy.sparse.issparse(data.X)
    return _fit(LinearRegression(tol=1e-9) if sparse else LinearRegression(), data)


def ridge(data: Data) -> Solution:
    """Fit `Ridge` with next to no penalty: by Cholesky, or by conjugate gradients (sparse X)."""
    if scipy.sparse.issparse(data.X):
        return _fit(Ridge(alpha=1e-12, solver="sparse_cg", tol=1e-9), data)
    return _fit(Ridge(alpha=1e-12, solver="cholesky"), data)


def intelex(data: Data) -> Solution:
    """Fit scikit-learn-intelex's `LinearRegression` (oneDAL's normal equations), unpatched."""
    return _fit(importlib.import_module("sklearnex.linear_model").LinearRegression(), data)


def statsmodels(data: Data) -> Solution:
    """Fit statsmodels' `OLS` or `WLS`, for the coefficients alone."""
    models = importlib.import_module("statsmodels.regression.linear_model")
    design = _with_ones(data.X)
    if data.sample_weight is None:
        coef = models.OLS(data.y, design).fit().params
    else:
        coef = models.WLS(data.y, design, weights=data.sample_weight).fit().params
    return Solution(coef[1:], float(coef[0]))


def numpy_lstsq(data: Data) -> Solution:
    """Solve with `numpy.linalg.lstsq` (LAPACK gelsd) and a column of ones."""
    coef = np.linalg.lstsq(_with_ones(data.X), data.y, rcond=None)[0]
    return Solution(coef[1:], float(coef[0]))


def numpy_polyfit(data: Data) -> Solution:
    """Fit a line with `numpy.polyfit`, whose weights multiply the residuals."""
    root = None if data.sample_weight is None else np.sqrt(data.sample_weight)
    slope, intercept = np.polyfit(data.X[:, 0], data.y, deg=1, w=root)
    return Solution(np.array([slope]), float(intercept))


def torch_lstsq(data: Data) -> Solution:
    """Solve with `torch.linalg.lstsq` by QR (gels), on the device that the tensors are on."""
    X, y = torch.as_tensor(data.X), torch.as_tensor(data.y)
    design = torch.cat([X.new_ones((len(X), 1)), X], dim=1)
    coef = torch.linalg.lstsq(design, y[:, None], driver="gels").solution[:, 0].cpu().numpy()
    return Solution(coef[1:], float(coef[0]))


def _fit(estimator: Any, data: Data) -> Solution:  # Any: scikit-learn's estimators are untyped
    """Fit anything with scikit-learn's interface."""
    if data.sample_weight is None:
        estimator.fit(data.X, data.y)
    else:
        estimator.fit(data.X, data.y, sample_weight=data.sample_weight)
    return Solution(estimator.coef_, float(estimator.intercept_))


def _with_ones(X: np.ndarray) -> np.ndarray:
    """X behind a column of ones."""
    return np.column_stack([np.ones(len(X), X.dtype), X])


_DENSE: frozenset[Kind] = frozenset({"dense"})
_WEIGHTED: frozenset[Kind] = frozenset({"dense", "weighted"})
_SPARSE: frozenset[Kind] = frozenset({"dense", "weighted", "sparse"})
_CUDA: frozenset[Kind] = frozenset({"cuda"})  # in addition to one of the above

LIBRARIES = (
    Library(OURS, "TorchLinearRegressor()", "torchlinreg", ours, _SPARSE | _CUDA),
    Library(
        "LinearRegression",
        "LinearRegression(); tol=1e-9 for sparse X",
        "sklearn",
        linear_regression,
        _SPARSE,
    ),
    Library(
        "Ridge",
        'Ridge(alpha=1e-12, solver="cholesky"); solver="sparse_cg", tol=1e-9 for sparse X',
        "sklearn",
        ridge,
        _SPARSE,
    ),
    # With weights or sparse X it hands over to scikit-learn's LinearRegression, which is above.
    Library("sklearnex", "sklearnex.linear_model.LinearRegression()", "sklearnex", intelex, _DENSE),
    # It takes the SVD of X: at 1e6 x 100 that is minutes, and several times the memory of X.
    Library(
        "statsmodels",
        "statsmodels OLS(y, X).fit() or WLS",
        "statsmodels",
        statsmodels,
        _WEIGHTED,
        estimator=False,
        max_work=2e9,
    ),
    Library(
        "numpy lstsq",
        "numpy.linalg.lstsq(X, y, rcond=None)",
        "numpy",
        numpy_lstsq,
        _DENSE,
        estimator=False,
    ),
    Library(
        "numpy polyfit",
        "numpy.polyfit(x, y, deg=1)",
        "numpy",
        numpy_polyfit,
        _WEIGHTED,
        estimator=False,
        one_feature=True,
    ),
    Library(
        "torch lstsq",
        'torch.linalg.lstsq(X, y, driver="gels")',
        "torch",
        torch_lstsq,
        _DENSE | _CUDA,
        estimator=False,
    ),
)


def unfit_reason(library: Library, kind: Kind, shape: Shape) -> str | None:
    """Say why a library cannot take part.

    Parameters
    ----------
    library : Library
        A row of `LIBRARIES`.
    kind : {"dense", "weighted", "sparse", "cuda"}
        The kind of data.
    shape : Shape
        Their shape.

    Returns
    -------
    str or None
        A reason such as "sklearnex is not installed"; None if there is none.
    """
    if kind not in library.kinds:
        return f"does not take {kind} data"
    if library.one_feature and shape.n_features > 1:
        return "takes one feature only"
    work = shape.n_samples * shape.n_features**2
    if work > library.max_work:
        return f"too slow: n_samples * n_features^2 is {work:.0e}, above {library.max_work:.0e}"
    if importlib.util.find_spec(library.package) is None:
        return f"{library.package} is not installed"
    return None
