"""What holds no rows of numbers is refused, with the words that help."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import polars as pl
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from torchlinreg import TorchLinearRegressor, TorchLinearRegressorCV, regularization_path

NUMBERS = np.random.default_rng(0).normal(size=(12, 2))
TARGETS = NUMBERS @ [1.0, 2.0] + 3
TIMES = [datetime(2020, 1, day + 1) for day in range(12)]
MISSING = [*TIMES[:7], None, *TIMES[8:]]

CALLS = {
    "fit": TorchLinearRegressor().fit,
    "partial_fit": TorchLinearRegressor().partial_fit,
    "cv": TorchLinearRegressorCV(alphas=[0.1]).fit,
    "path": regularization_path,
    "predict": lambda X, _: fitted_to_names_of(X).predict(X),
}


def fitted_to_names_of(X):
    ones = np.ones((3, 1))
    is_frame = isinstance(X, pd.DataFrame | pl.DataFrame)
    named = pd.DataFrame(ones, columns=list(X.columns)) if is_frame else ones
    return TorchLinearRegressor().fit(named, np.ones(3))


class Lazy:
    """What a collection of dask looks like from its class."""

    def __init__(self, module):
        self.__class__ = type("Array", (), {"__module__": module, "shape": (12, 2), "ndim": 2})


@pytest.mark.every(3)
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "X",
    [
        np.array(MISSING, dtype="datetime64[ns]")[:, None],
        np.array(MISSING, dtype="datetime64[D]")[:, None],
        pd.DataFrame({"time": np.array(MISSING, dtype="datetime64[s]")}),
        pl.DataFrame({"time": MISSING}),
        np.array([timedelta(hours=1), *[None] * 11], dtype="timedelta64[us]")[:, None],
    ],
)
def test_missing_datetimes_are_refused(call, X):
    with pytest.raises(ValueError, match=r"Input X contains NaT.* Turn datetimes into numbers") as caught:
        CALLS[call](X, TARGETS)
    assert ("'time'" in str(caught.value)) == hasattr(X, "columns")


def test_missing_datetimes_among_targets_are_refused():
    with pytest.raises(ValueError, match="Input y contains NaT"):
        TorchLinearRegressor().fit(NUMBERS, pd.Series(MISSING, dtype="datetime64[ns]"))


@pytest.mark.parametrize(
    "times",
    [
        pd.Series(TIMES),
        pd.Series([time.replace(tzinfo=UTC) for time in TIMES]),
        pd.Series(TIMES, dtype=object),
    ],
)
def test_datetimes_beside_numbers_are_named(times):
    frame = pd.DataFrame({"size": NUMBERS[:, 0], "time": times})
    with pytest.raises(
        ValueError, match=r"Column 'time' of X holds no numbers.* Turn datetimes into numbers"
    ):
        TorchLinearRegressor().fit(frame, TARGETS)


@pytest.mark.parametrize(
    "frame",
    [
        pd.DataFrame({"size": NUMBERS[:, 0], "city": ["Rome"] * 12}),
        pd.DataFrame({"size": NUMBERS[:, 0], "city": ["1"] * 11 + ["Rome"]}),
        pd.DataFrame({"size": NUMBERS[:, 0], "city": pd.Categorical(["Rome"] * 12)}),
        pl.DataFrame({"size": NUMBERS[:, 0], "city": ["Rome"] * 12}),
        pl.DataFrame({"size": NUMBERS[:, 0], "city": pl.Series(["Rome"] * 12, dtype=pl.Categorical)}),
    ],
)
def test_columns_of_text_are_named(frame):
    with pytest.raises(ValueError, match=r"Column 'city' of X holds no numbers: .*Rome.* OneHotEncoder"):
        TorchLinearRegressor().fit(frame, TARGETS)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("X", "words"),
    [
        (pl.DataFrame(NUMBERS).lazy(), r"LazyFrame of polars.* X\.collect\(\)"),
        (Lazy("dask.array.core"), r"Array of dask.* X\.compute\(\)"),
        (Lazy("dask_expr._collection"), r"X\.compute\(\)"),
        (TensorDataset(torch.from_numpy(NUMBERS)), "TensorDataset of torch.* partial_fit for each batch"),
        (
            DataLoader(TensorDataset(torch.from_numpy(NUMBERS))),
            "DataLoader of torch.* partial_fit for each batch",
        ),
    ],
)
def test_what_must_be_read_first_is_refused(call, X, words):
    for y in (TARGETS, None):
        with pytest.raises(TypeError, match=words):
            CALLS[call](X, y)


def test_targets_and_weights_must_be_read_first():
    lazy = pl.DataFrame({"y": TARGETS}).lazy()
    with pytest.raises(TypeError, match=r"y is a LazyFrame .*y\.collect\(\)"):
        TorchLinearRegressor().fit(NUMBERS, lazy)
    with pytest.raises(TypeError, match=r"sample_weight is a LazyFrame .*sample_weight\.collect\(\)"):
        TorchLinearRegressor().fit(NUMBERS, TARGETS, lazy)
