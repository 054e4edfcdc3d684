"""Arguments of training that make no sense are refused with a sentence."""

import functools

import numpy as np
import pytest
from reference.training import problem
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as schedulers

from torchlinreg import TorchLinearRegressor

WRONG_PARAMETERS = {
    "solver name": ({"solver": "SGD"}, ValueError, r"solver='SGD' is not known.*'adam'.*'lbfgs'.*'sgd'"),
    "solver number": ({"solver": 3}, ValueError, r"solver=3 is not known"),
    "sparse optimizer": ({"solver": "sparseadam"}, ValueError, "is not known"),
    "batch_size 0": ({"batch_size": 0}, ValueError, r"batch_size=0 must be None \(the full batch\)"),
    "batch_size float": ({"batch_size": 8.0}, ValueError, r"batch_size=8\.0 must be"),
    "batch_size bool": ({"batch_size": True}, ValueError, "batch_size=True must be"),
    "learning_rate word": ({"learning_rate": "optimal"}, ValueError, "'optimal' must be 'auto' or a posi"),
    "learning_rate 0": ({"learning_rate": 0}, ValueError, "learning_rate=0 must be"),
    "learning_rate NaN": ({"learning_rate": np.nan}, ValueError, "learning_rate=nan must be"),
    "learning_rate inf": ({"learning_rate": np.inf}, ValueError, "learning_rate=inf must be"),
    "max_iter 0": ({"max_iter": 0}, ValueError, "max_iter=0 must be None or an integer, 1 or more"),
    "tol below 0": ({"tol": -1e-3}, ValueError, r"tol=-0\.001 must be a number, 0 or more"),
    "n_iter_no_change": ({"n_iter_no_change": 0}, ValueError, "n_iter_no_change=0 must be"),
    "validation_fraction": ({"validation_fraction": 1.0}, ValueError, "between 0 and 1"),
    "early_stopping": ({"early_stopping": "yes"}, ValueError, "early_stopping='yes' must be True or False"),
    "shuffle": ({"shuffle": 1}, ValueError, "shuffle=1 must be True or False"),
    "warm_start": ({"warm_start": None}, ValueError, "warm_start=None must be True or False"),
    "two rates": (
        {"solver": functools.partial(SGD, lr=0.1), "learning_rate": 0.2},
        ValueError,
        "both given",
    ),
    "no optimizer": ({"solver": lambda params: None}, TypeError, r"NoneType.*\[coef, intercept\]"),
    "another class": ({"solver": dict}, (TypeError, ValueError), "Optimizer"),
    "no concrete optimizer": ({"solver": Optimizer}, (TypeError, ValueError), "Optimizer"),
}


WRONG_DATA = {
    "no y_val": (lambda X, y: {"X_val": X}, "X_val and y_val belong together"),
    "no X_val": (lambda X, y: {"y_val": y}, "X_val and y_val belong together"),
    "weights alone": (lambda X, y: {"sample_weight_val": y}, "X_val and y_val belong together"),
    "features of X_val": (lambda X, y: {"X_val": X[:, :2], "y_val": y}, "2 features"),
    "targets of y_val": (lambda X, y: {"X_val": X, "y_val": np.column_stack([y, y])}, "y_val has 2 targets"),
    "rows of X_val": (lambda X, y: {"X_val": X, "y_val": y[:9]}, "inconsistent numbers of samples"),
    "NaN in X_val": (lambda X, y: {"X_val": X * np.nan, "y_val": y}, "X_val.*NaN"),
    "NaN in y_val": (lambda X, y: {"X_val": X, "y_val": np.abs(y) * np.inf}, "y_val.*infinity"),
    "zero validation weights": (
        lambda X, y: {"X_val": X, "y_val": y, "sample_weight_val": 0 * y},
        "zero",
    ),
    "shape of coef_init": (lambda X, y: {"coef_init": [1.0, 2.0]}, r"coef_init has shape .*2.*3"),
    "NaN in coef_init": (lambda X, y: {"coef_init": [1.0, 2.0, np.nan]}, "coef_init holds NaN"),
    "shape of intercept_init": (lambda X, y: {"intercept_init": [1.0, 2.0]}, "intercept_init has shape"),
    "infinite intercept_init": (lambda X, y: {"intercept_init": np.inf}, "intercept_init holds NaN or inf"),
    "zero weights": (lambda X, y: {"sample_weight": 0 * y}, "zero"),
}


class TestRefusals:
    @pytest.mark.parametrize("case", WRONG_PARAMETERS)
    def test_parameters(self, case):
        options, error, words = WRONG_PARAMETERS[case]
        X, y, _ = problem()
        with pytest.raises(error, match=words):
            TorchLinearRegressor(**{"solver": "sgd", **options}).fit(X, y)

    @pytest.mark.parametrize("batch_size", [None, 8])
    @pytest.mark.parametrize("case", WRONG_DATA)
    def test_arguments_of_fit(self, case, batch_size):
        wrong, words = WRONG_DATA[case]
        X, y, _ = problem()
        reg = TorchLinearRegressor(solver="sgd", early_stopping=True, batch_size=batch_size)
        with pytest.raises(ValueError, match=words):
            reg.fit(X, y, **wrong(X, y))

    @pytest.mark.parametrize("learning_rate", ["auto", 1e-3])
    @pytest.mark.parametrize("early_stopping", [True, False])
    @pytest.mark.parametrize("batch_size", [None, 8])
    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_values_of_the_data(self, value, batch_size, early_stopping, learning_rate):
        X, y, _ = problem()
        reg = TorchLinearRegressor(solver="adam", learning_rate=learning_rate, batch_size=batch_size)
        reg.set_params(early_stopping=early_stopping)
        wrong_X, wrong_y = X.copy(), y.copy()
        wrong_X[3, 1] = wrong_y[3] = value
        for method in (reg.fit, reg.partial_fit):
            with pytest.raises(ValueError, match="Input X contains"):
                method(wrong_X, y)
            with pytest.raises(ValueError, match="Input y contains"):
                method(X, wrong_y)

    def test_an_intercept_that_nobody_fits(self):
        X, y, _ = problem()
        with pytest.raises(ValueError, match="intercept_init is given, but fit_intercept=False"):
            TorchLinearRegressor(solver="sgd", fit_intercept=False).fit(X, y, intercept_init=1.0)

    @pytest.mark.parametrize(
        "options",
        [
            {"batch_size": 8},
            {"learning_rate": 0.1},
            {"lr_scheduler": schedulers.ConstantLR},
            {"early_stopping": True},
        ],
    )
    @pytest.mark.parametrize("solver", ["auto", "cholesky", "exact", "dual"])
    def test_training_parameters_of_solvers_that_do_not_train(self, solver, options):
        X, y, _ = problem()
        (name,) = options
        with pytest.raises(ValueError, match=f"{name}=.* has no meaning for solver='{solver}'.*'adam'"):
            TorchLinearRegressor(solver=solver, **options).fit(X, y)

    @pytest.mark.parametrize(
        "given", ["coef_init", "intercept_init", "X_val", "y_val", "sample_weight_val", "resume_from"]
    )
    def test_training_arguments_of_solvers_that_do_not_train(self, given):
        X, y, _ = problem()
        with pytest.raises(ValueError, match=f"{given} cannot be used by solver='auto'"):
            TorchLinearRegressor().fit(X, y, **{given: 1.0})

    def test_too_few_rows_to_split(self):
        with pytest.raises(ValueError, match=r"validation_fraction=0\.1.*early_stopping=False"):
            TorchLinearRegressor(solver="sgd", early_stopping=True).fit([[1.0], [1.0]], [2.0, 2.0])
