"""Linear regression with PyTorch, at home in scikit-learn, right on raw data."""

from torchlinreg._estimator import TorchLinearRegressor
from torchlinreg._solution import FitStatus, Status

__all__ = ["FitStatus", "Status", "TorchLinearRegressor", "__version__"]

__version__ = "0.1.0"
