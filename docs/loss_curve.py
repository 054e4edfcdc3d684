"""Draw the README's picture: loss curves on the Hubble data, untuned, beside a tutorial's rate.

Run ``python docs/loss_curve.py``; it writes ``docs/loss_curve.png``.
"""

import warnings
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning

from torchlinreg import TorchLinearRegressor
from torchlinreg.datasets import load_hubble

X, y = load_hubble(version="freedman24", return_X_y=True)
best = TorchLinearRegressor().fit(X, y)
optimum = np.mean((y - best.predict(X)) ** 2) / 2

figure = Figure(figsize=(7, 3.6), layout="constrained")
axes = figure.subplots()
runs = {
    '"sgd", untuned': TorchLinearRegressor(solver="sgd"),
    '"adam", untuned': TorchLinearRegressor(solver="adam"),
    '"sgd", learning_rate=0.005': TorchLinearRegressor(solver="sgd", learning_rate=0.005, max_iter=1000),
}
for label, reg in runs.items():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # that 0.005 is slow is what the picture shows
        reg.fit(X, y)
    axes.loglog(np.arange(1, reg.n_iter_ + 1), reg.loss_curve_ / optimum - 1 + 1e-15, label=label)
axes.set_xlabel("epoch")
axes.set_ylabel("loss above the optimum,\nrelative")
axes.set_ylim(1e-15, 1e2)
axes.set_title("Training on 24 galaxies, raw data (distance in Mpc, velocity in km/s)", fontsize=10)
axes.legend()
figure.savefig(Path(__file__).parent / "loss_curve.png", dpi=110)
