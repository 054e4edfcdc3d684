"""A perceptron learns the line through 25 points: 4000 epochs on the summed squared loss at rate 0.001.

The experiment of the tutorial "Linear Regression with Perceptron Using the PyTorch Library in Python". Its
loss is a sum of residual^2, ours is the mean of residual^2 / 2. A rate for a sum is multiplied by the number
of rows, and by 2 since the sum has no 1/2: 0.001 there is 0.001 * 25 * 2 = 0.05 here. The tutorial starts at
random numbers; here both start at 0.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from torchlinreg import TorchLinearRegressor
from torchlinreg.datasets import load_perceptron25

RATE = 0.001
N_EPOCHS = 4000
PRINT_EVERY = 100


def plain_loop(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Run the tutorial's loop: the loss before each epoch and after the last, the slope, the intercept."""
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y)[:, None]
    neuron = torch.nn.Linear(1, 1, dtype=torch.float64)
    torch.nn.init.zeros_(neuron.weight)
    torch.nn.init.zeros_(neuron.bias)
    optimizer = torch.optim.SGD(neuron.parameters(), lr=RATE)
    losses = []
    for _ in range(N_EPOCHS):
        loss = (neuron(inputs) - targets).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    losses.append((neuron(inputs) - targets).square().sum().item())
    return np.array(losses), neuron.weight.item(), neuron.bias.item()


def main(output: Path | None = None) -> dict[str, float | list[float]]:
    """Train, compare, print and save `perceptron_25_points.png`; return the figures printed."""
    output = Path(__file__).parent / "output" if output is None else output
    output.mkdir(parents=True, exist_ok=True)
    X, y = load_perceptron25(return_X_y=True)
    per_row = 2 * len(y)  # the tutorial's sum, in units of our objective

    neuron = TorchLinearRegressor(solver="sgd", learning_rate=RATE * per_row, max_iter=N_EPOCHS, tol=0)
    neuron.fit(X, y)
    losses = neuron.loss_curve_ * per_row
    plain_losses, plain_slope, plain_intercept = plain_loop(X, y)
    exact = TorchLinearRegressor().fit(X, y)
    polyfit_slope, polyfit_intercept = np.polyfit(X[:, 0], y, 1)

    print("epoch   summed squared loss   plain loop")
    for epoch in range(PRINT_EVERY, N_EPOCHS + 1, PRINT_EVERY):
        print(f"{epoch:5}{losses[epoch - 1]:22.12f}{plain_losses[epoch]:22.12f}")
    loss_difference = float(np.max(np.abs(losses / plain_losses[1:] - 1)))
    print(f"largest relative difference of the {N_EPOCHS} losses: {loss_difference:.1e}\n")

    lines = {
        "neuron, 4000 epochs": (neuron.coef_[0], neuron.intercept_),
        "plain PyTorch loop": (plain_slope, plain_intercept),
        "TorchLinearRegressor()": (exact.coef_[0], exact.intercept_),
        "numpy.polyfit": (polyfit_slope, polyfit_intercept),
    }
    print(f"{'':24}{'slope':>15}{'intercept':>15}{'slope - OLS':>17}{'intercept - OLS':>17}")
    for name, (slope, intercept) in lines.items():
        gaps = slope - exact.coef_[0], intercept - exact.intercept_
        print(f"{name:24}{slope:15.10f}{intercept:15.10f}{gaps[0]:17.1e}{gaps[1]:17.1e}")
    print(f"R2 of the neuron: {neuron.score(X, y):.6f}")

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = np.array([[X.min()], [X.max()]])
    left.scatter(X[:, 0], y, color="tab:blue", label="25 points")
    left.plot(ends, neuron.predict(ends), color="tab:red", linewidth=3, label="neuron, 4000 epochs")
    left.plot(ends, exact.predict(ends), "k--", label="least squares")
    left.set(title="Fitted line", xlabel="x", ylabel="y")
    left.legend()
    right.semilogx(np.arange(1, N_EPOCHS + 1), losses, color="tab:red", linewidth=3, label="neuron")
    right.semilogx(np.arange(1, N_EPOCHS + 1), plain_losses[1:], "k:", label="plain PyTorch loop")
    right.set(title="Loss", xlabel="epoch", ylabel="sum of squared residuals")
    right.legend()
    figure.savefig(output / "perceptron_25_points.png", dpi=120)

    return {
        "slope": float(neuron.coef_[0]),
        "intercept": float(neuron.intercept_),
        "plain_slope": plain_slope,
        "plain_intercept": plain_intercept,
        "ols_slope": float(exact.coef_[0]),
        "ols_intercept": float(exact.intercept_),
        "polyfit_slope": float(polyfit_slope),
        "polyfit_intercept": float(polyfit_intercept),
        "loss_difference": loss_difference,
        "losses": losses[PRINT_EVERY - 1 :: PRINT_EVERY].tolist(),
        "r2": neuron.score(X, y),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, help="folder for the picture (default: examples/output)")
    main(parser.parse_args().output)
