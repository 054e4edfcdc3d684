"""A line learns y = 2x + 3 from 250 noisy points: 200 epochs at rate 0.01, as an animation.

The experiment of the tutorial "Visualizing Linear Regression with PyTorch": x uniform on [0, 1], noise normal
with standard deviation 1/4, `MSELoss` at rate 0.01. `MSELoss` has no 1/2, our objective is the mean of
residual^2 / 2, so its rate doubles: 0.01 there is 0.02 here. The tutorial starts at random numbers; here both
start at 0. 200 epochs are far from the end of training, which the estimator says in a ConvergenceWarning.

The history of the coefficients needs scikit-learn 1.9 or later.
"""

import argparse
import warnings
from pathlib import Path

import numpy as np
import torch
from matplotlib.animation import FuncAnimation, PillowWriter
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning

from torchlinreg import TorchLinearRegressor
from torchlinreg.callbacks import CoefficientHistory

SLOPE, INTERCEPT, NOISE = 2.0, 3.0, 0.25
N_ROWS = 250
RATE = 0.01
N_EPOCHS = 200
EVERY = 8  # epochs between two frames of the animation
FRAMES_PER_SECOND = 6


def make_data() -> tuple[np.ndarray, np.ndarray]:
    """The noisy points, of a fixed seed."""
    random = np.random.default_rng(0)
    X = random.random((N_ROWS, 1))
    return X, SLOPE * X[:, 0] + INTERCEPT + NOISE * random.standard_normal(N_ROWS)


def plain_loop(X: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Run the tutorial's loop: the losses and the lines (slope, intercept) at 0 and after each epoch."""
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y)[:, None]
    neuron = torch.nn.Linear(1, 1, dtype=torch.float64)
    torch.nn.init.zeros_(neuron.weight)
    torch.nn.init.zeros_(neuron.bias)
    mean_squared_error = torch.nn.MSELoss()
    optimizer = torch.optim.SGD(neuron.parameters(), lr=RATE)
    losses, lines = [], [(0.0, 0.0)]
    for _ in range(N_EPOCHS):
        loss = mean_squared_error(neuron(inputs), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        lines.append((neuron.weight.item(), neuron.bias.item()))
    losses.append(mean_squared_error(neuron(inputs), targets).item())
    return np.array(losses), np.array(lines)


def animate(
    X: np.ndarray, y: np.ndarray, epochs: np.ndarray, lines: np.ndarray, losses: np.ndarray, best: np.ndarray
) -> FuncAnimation:
    """Animate the lines (slope, intercept) over the points, beside the losses at these epochs."""
    # No layout engine: it would arrange each of the frames anew, which takes longer than all the rest.
    figure = Figure(figsize=(9, 3.8), dpi=72)
    left, right = figure.subplots(1, 2)
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.14, top=0.91, wspace=0.22)
    ends = np.array([0.0, 1.0])
    left.plot(X[:, 0], y, ".", color="lightskyblue", label=f"{N_ROWS} points")
    left.plot(ends, best[0] * ends + best[1], "k--", label="least squares")
    (line,) = left.plot([], [], color="tab:red", linewidth=3, label="neuron")
    left.set(xlabel="x", ylabel="y", ylim=(-0.3, y.max() + 1.2))
    left.legend(loc="upper left")
    right.plot(epochs, losses, color="lightgray")
    (trace,) = right.plot([], [], color="tab:red", linewidth=2, label="neuron")
    floor = np.mean((y - best[0] * X[:, 0] - best[1]) ** 2)
    right.axhline(floor, color="black", linestyle="--", label="least squares")
    right.set(title="Loss", xlabel="epoch", ylabel="mean squared error")
    right.legend(loc="upper right")

    def draw(frame: int) -> list[Artist]:
        slope, intercept = lines[frame]
        line.set_data(ends, slope * ends + intercept)
        left.set_title(f"Epoch {epochs[frame]}: y = {slope:.2f} x + {intercept:.2f}")
        trace.set_data(epochs[: frame + 1], losses[: frame + 1])
        return [line, trace]

    return FuncAnimation(
        figure, draw, frames=len(epochs), interval=1000 / FRAMES_PER_SECOND, init_func=lambda: draw(0)
    )


def main(output: Path | None = None) -> dict[str, float]:
    """Train, compare, print and save the animation as GIF and HTML; return the figures printed."""
    output = Path(__file__).parent / "output" if output is None else output
    output.mkdir(parents=True, exist_ok=True)
    X, y = make_data()

    history = CoefficientHistory(every=EVERY)
    neuron = TorchLinearRegressor(solver="sgd", learning_rate=2 * RATE, max_iter=N_EPOCHS, tol=0)
    neuron.set_callbacks(history)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # its text is printed below
        neuron.fit(X, y)
    losses = 2 * neuron.loss_curve_  # mean squared error
    plain_losses, plain_lines = plain_loop(X, y)
    exact = TorchLinearRegressor().fit(X, y)
    best = np.array([exact.coef_[0], exact.intercept_])
    polyfit = np.polyfit(X[:, 0], y, 1)

    epochs = np.array([0, *history.epochs_])
    lines = np.vstack([[0.0, 0.0], np.column_stack([history.coef_, history.intercept_])])
    history_difference = float(np.max(np.abs(lines - plain_lines[epochs])))
    loss_difference = float(np.max(np.abs(losses / plain_losses[1:] - 1)))
    table = {
        "neuron, 200 epochs": (neuron.coef_[0], neuron.intercept_),
        "plain PyTorch loop": plain_lines[-1],
        "TorchLinearRegressor()": best,
        "numpy.polyfit": polyfit,
        "truth": (SLOPE, INTERCEPT),
    }
    print(f"{'':24}{'slope':>15}{'intercept':>15}{'slope - OLS':>17}{'intercept - OLS':>17}")
    for name, (slope, intercept) in table.items():
        gaps = slope - best[0], intercept - best[1]
        print(f"{name:24}{slope:15.10f}{intercept:15.10f}{gaps[0]:17.1e}{gaps[1]:17.1e}")
    print(f"largest difference of the {len(epochs)} lines from the plain loop's: {history_difference:.1e}")
    print(f"largest relative difference of the losses from the plain loop's: {loss_difference:.1e}")
    print(f"the estimator says: {neuron.status_}")

    shown = np.array([np.mean(y**2), *losses[epochs[1:] - 1]])  # from the line at 0 on
    animation = animate(X, y, epochs, lines, shown, best)
    animation.save(output / "synthetic_line_animated.gif", writer=PillowWriter(fps=FRAMES_PER_SECOND))
    html = animation.to_jshtml(default_mode="once")
    (output / "synthetic_line_animated.html").write_text(html, encoding="utf-8")

    return {
        "slope": float(neuron.coef_[0]),
        "intercept": float(neuron.intercept_),
        "plain_slope": float(plain_lines[-1, 0]),
        "plain_intercept": float(plain_lines[-1, 1]),
        "ols_slope": float(best[0]),
        "ols_intercept": float(best[1]),
        "polyfit_slope": float(polyfit[0]),
        "polyfit_intercept": float(polyfit[1]),
        "n_frames": len(epochs),
        "history_difference": history_difference,
        "loss_difference": loss_difference,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, help="folder for the pictures (default: examples/output)")
    try:
        main(parser.parse_args().output)
    except NotImplementedError as error:  # scikit-learn before 1.9 has no callbacks
        raise SystemExit(f"synthetic_line_animated.py: {error}") from None
