"""Plant species on 22 islands against their area: 6000 epochs on the mean squared error at rate 0.002.

The experiment of the tutorial "Linear Regression Using Neural Networks (PyTorch)". Its `MSELoss` has no 1/2,
our objective is the mean of residual^2 / 2, so its rate doubles: 0.002 there is 0.004 here. The tutorial
starts at random numbers; here both start at 0. Its 6000 epochs end about 1 % of the slope away from least
squares, which the estimator says in a ConvergenceWarning; `solver="adam"` gets there without any tuning.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning

from torchlinreg import TorchLinearRegressor
from torchlinreg.datasets import load_plant_richness

RATE = 0.002
N_EPOCHS = 6000
AREA = 3.0  # log10 of an area in hectares


def plain_loop(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Run the tutorial's loop: the loss before each epoch and after the last, the slope, the intercept."""
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y)[:, None]
    neuron = torch.nn.Linear(1, 1, dtype=torch.float64)
    torch.nn.init.zeros_(neuron.weight)
    torch.nn.init.zeros_(neuron.bias)
    mean_squared_error = torch.nn.MSELoss()
    optimizer = torch.optim.SGD(neuron.parameters(), lr=RATE)
    losses = []
    for _ in range(N_EPOCHS):
        loss = mean_squared_error(neuron(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    losses.append(mean_squared_error(neuron(inputs), targets).item())
    return np.array(losses), neuron.weight.item(), neuron.bias.item()


def main(output: Path | None = None) -> dict[str, float]:
    """Train, compare, print and save `plant_richness.png`; return the figures printed."""
    output = Path(__file__).parent / "output" if output is None else output
    output.mkdir(parents=True, exist_ok=True)
    X, y = load_plant_richness(return_X_y=True)

    neuron = TorchLinearRegressor(solver="sgd", learning_rate=2 * RATE, max_iter=N_EPOCHS, tol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its text is printed below
        neuron.fit(X, y)
    losses = 2 * neuron.loss_curve_  # mean squared error
    plain_losses, plain_slope, plain_intercept = plain_loop(X, y)
    untuned = TorchLinearRegressor(solver="adam").fit(X, y)
    exact = TorchLinearRegressor().fit(X, y)
    polyfit_slope, polyfit_intercept = np.polyfit(X[:, 0], y, 1)

    lines = {
        "neuron, 6000 epochs": (neuron.coef_[0], neuron.intercept_),
        "plain PyTorch loop": (plain_slope, plain_intercept),
        "neuron, solver='adam'": (untuned.coef_[0], untuned.intercept_),
        "TorchLinearRegressor()": (exact.coef_[0], exact.intercept_),
        "numpy.polyfit": (polyfit_slope, polyfit_intercept),
    }
    print(f"{'':24}{'slope':>15}{'intercept':>15}{'slope - OLS':>17}{'intercept - OLS':>17}")
    for name, (slope, intercept) in lines.items():
        gaps = slope - exact.coef_[0], intercept - exact.intercept_
        print(f"{name:24}{slope:15.10f}{intercept:15.10f}{gaps[0]:17.1e}{gaps[1]:17.1e}")
    loss_difference = float(np.max(np.abs(losses / plain_losses[1:] - 1)))
    print(f"largest relative difference of the losses from the plain loop's: {loss_difference:.1e}")
    print(f"mean squared error after {N_EPOCHS} epochs: {losses[-1]:.6f}")
    r2, exact_r2 = neuron.score(X, y), exact.score(X, y)
    print(f"R2: neuron {r2:.6f}, least squares {exact_r2:.6f}")
    prediction, exact_prediction = (float(model.predict([[AREA]])[0]) for model in (neuron, exact))
    print(f"log10 species at area {AREA:g} (log10 ha):", end=" ")
    print(f"neuron {prediction:.6f} ({10**prediction:.1f} species)", end=", ")
    print(f"least squares {exact_prediction:.6f} ({10**exact_prediction:.1f} species)")
    print(f"the estimator says: {neuron.status_}")

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = np.array([[X.min()], [X.max()]])
    left.scatter(X[:, 0], y, color="tab:green", label="22 islands")
    left.plot(ends, neuron.predict(ends), color="tab:red", linewidth=3, label="neuron, 6000 epochs")
    left.plot(ends, exact.predict(ends), "k--", label="least squares")
    left.plot(AREA, prediction, "D", color="tab:orange", markersize=9, label=f"prediction at {AREA:g}")
    left.set(title=f"Native plant species, R2 = {r2:.3f}")
    left.set(xlabel="log10 of the area (ha)", ylabel="log10 of the number of species")
    left.legend()
    right.loglog(np.arange(1, N_EPOCHS + 1), losses, color="tab:red", linewidth=3, label="neuron")
    right.loglog(np.arange(1, N_EPOCHS + 1), plain_losses[1:], "k:", label="plain PyTorch loop")
    right.set(title="Loss", xlabel="epoch", ylabel="mean squared error, (log10 species)²")
    right.legend()
    figure.savefig(output / "plant_richness.png", dpi=120)

    return {
        "slope": float(neuron.coef_[0]),
        "intercept": float(neuron.intercept_),
        "plain_slope": plain_slope,
        "plain_intercept": plain_intercept,
        "untuned_slope": float(untuned.coef_[0]),
        "untuned_intercept": float(untuned.intercept_),
        "ols_slope": float(exact.coef_[0]),
        "ols_intercept": float(exact.intercept_),
        "polyfit_slope": float(polyfit_slope),
        "polyfit_intercept": float(polyfit_intercept),
        "loss": float(losses[-1]),
        "loss_difference": loss_difference,
        "r2": r2,
        "ols_r2": exact_r2,
        "prediction": prediction,
        "ols_prediction": exact_prediction,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, help="folder for the picture (default: examples/output)")
    main(parser.parse_args().output)
