"""Hubble's law and the age of the universe, from 23 galaxies in km/s and Mpc, with no scaling by hand.

The experiment of the tutorial "Linear Regression With Pytorch Neural Network and Numpy in Colab Python". It
divides both columns by their maximum and runs 300 iterations of `MSELoss` at rate 0.05; `MSELoss` has no 1/2,
our objective is the mean of residual^2 / 2, so that rate is 0.1 here. From a random start it came to a slope
of about 74; from 0, where both start here, the same loop comes to 65. Neither is the end of training.
Without a rate, the estimator trains on the raw columns and reaches the line of `numpy.polyfit`.

The age is 1 / slope of the line with intercept: 12.165 Gyr. A line through the origin would give 12.502 Gyr.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning

from torchlinreg import TorchLinearRegressor
from torchlinreg.datasets import load_hubble

RATE = 0.05
N_EPOCHS = 300
AGE = 977.8  # Gyr km/s/Mpc; divided by a slope in km/s/Mpc, it is an age in Gyr


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
    """Train, compare, print and save `hubble.png`; return the figures printed."""
    output = Path(__file__).parent / "output" if output is None else output
    output.mkdir(parents=True, exist_ok=True)
    X, y = load_hubble(version="freedman23", return_X_y=True)

    neuron = TorchLinearRegressor(solver="adam").fit(X, y)

    # The tutorial's run, on columns divided by their maximum.
    distance_unit, velocity_unit = X.max(), y.max()
    X_scaled, y_scaled = X / distance_unit, y / velocity_unit
    undertrained = TorchLinearRegressor(solver="sgd", learning_rate=2 * RATE, max_iter=N_EPOCHS, tol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its text is printed below
        undertrained.fit(X_scaled, y_scaled)
    plain_losses, plain_coef, plain_bias = plain_loop(X_scaled, y_scaled)
    slope_unit = velocity_unit / distance_unit

    exact = TorchLinearRegressor().fit(X, y)
    polyfit_slope, polyfit_intercept = np.polyfit(X[:, 0], y, 1)
    correlation = float(np.corrcoef(X[:, 0], y)[0, 1])

    lines = {
        "neuron, raw columns": (neuron.coef_[0], neuron.intercept_),
        "TorchLinearRegressor()": (exact.coef_[0], exact.intercept_),
        "numpy.polyfit": (polyfit_slope, polyfit_intercept),
        "300 epochs, scaled": (undertrained.coef_[0] * slope_unit, undertrained.intercept_ * velocity_unit),
        "plain loop, scaled": (plain_coef * slope_unit, plain_bias * velocity_unit),
    }
    print(f"correlation of distance and velocity: {correlation:.6f}\n")
    print(f"{'':24}{'slope':>12}{'intercept':>12}{'age':>9}{'slope - OLS':>16}{'intercept - OLS':>18}")
    print(f"{'':24}{'km/s/Mpc':>12}{'km/s':>12}{'Gyr':>9}{'km/s/Mpc':>16}{'km/s':>18}")
    for name, (slope, intercept) in lines.items():
        gaps = slope - exact.coef_[0], intercept - exact.intercept_
        print(f"{name:24}{slope:12.6f}{intercept:12.5f}{AGE / slope:9.4f}{gaps[0]:16.1e}{gaps[1]:18.1e}")
    loss_difference = float(np.max(np.abs(2 * undertrained.loss_curve_ / plain_losses[1:] - 1)))
    print(f"largest relative difference of the losses from the plain loop's: {loss_difference:.1e}")
    print(f"epochs of the neuron on raw columns: {neuron.n_iter_}; {neuron.status_}")
    print(f"after {N_EPOCHS} epochs on scaled columns: {undertrained.status_}")

    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = np.array([[0.0], [X.max()]])
    left.scatter(X[:, 0], y, color="tab:blue", label="23 galaxies")
    age = AGE / neuron.coef_[0]
    left.plot(ends, neuron.predict(ends), color="tab:red", linewidth=3, label=f"neuron: {age:.3f} Gyr")
    age = AGE / polyfit_slope
    left.plot(ends, polyfit_slope * ends + polyfit_intercept, "k--", label=f"polyfit: {age:.3f} Gyr")
    slope, intercept = lines["300 epochs, scaled"]
    label = f"300 epochs, scaled: {AGE / slope:.3f} Gyr"
    left.plot(ends, slope * ends + intercept, color="tab:orange", label=label)
    left.set(title=f"Hubble's law, correlation {correlation:.3f}")
    left.set(xlabel="distance (Mpc)", ylabel="recession velocity (km/s)")
    left.legend()
    # Both losses as the root of the mean squared residual, which has the unit of the velocity.
    epochs = np.arange(1, neuron.n_iter_ + 1)
    right.semilogx(epochs, np.sqrt(2 * neuron.loss_curve_), color="tab:red", label="neuron, raw columns")
    scaled = np.sqrt(2 * undertrained.loss_curve_) * velocity_unit
    right.semilogx(np.arange(1, N_EPOCHS + 1), scaled, color="tab:orange", label="300 epochs, scaled")
    best = float(np.sqrt(np.mean((y - exact.predict(X)) ** 2)))
    right.axhline(best, color="black", linestyle="--", label=f"least squares: {best:.1f} km/s")
    right.set(title="Loss", xlabel="epoch", ylabel="root mean squared residual (km/s)")
    right.legend()
    figure.savefig(output / "hubble.png", dpi=120)

    return {
        "correlation": correlation,
        "slope": float(neuron.coef_[0]),
        "intercept": float(neuron.intercept_),
        "age": float(AGE / neuron.coef_[0]),
        "ols_slope": float(exact.coef_[0]),
        "ols_intercept": float(exact.intercept_),
        "polyfit_slope": float(polyfit_slope),
        "polyfit_age": float(AGE / polyfit_slope),
        "undertrained_slope": float(undertrained.coef_[0] * slope_unit),
        "undertrained_intercept": float(undertrained.intercept_ * velocity_unit),
        "undertrained_age": float(AGE / (undertrained.coef_[0] * slope_unit)),
        "plain_slope": float(plain_coef * slope_unit),
        "plain_intercept": float(plain_bias * velocity_unit),
        "loss_difference": loss_difference,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, help="folder for the picture (default: examples/output)")
    main(parser.parse_args().output)
