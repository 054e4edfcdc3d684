"""Linear regression with PyTorch, at home in scikit-learn, right on raw data."""

from torchlinreg import losses
from torchlinreg._estimator import TorchLinearRegressor
from torchlinreg._estimator_cv import TorchLinearRegressorCV
from torchlinreg._objective.solution import FitStatus, Status
from torchlinreg._selection.path import RegularizationPath, regularization_path

__all__ = [
    "FitStatus",
    "RegularizationPath",
    "Status",
    "TorchLinearRegressor",
    "TorchLinearRegressorCV",
    "__version__",
    "losses",
    "regularization_path",
]

__version__ = "0.1.0"
