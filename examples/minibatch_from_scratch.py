"""Mini-batches of 10 learn weights [2, -3.4] and bias 4.2 from 1000 rows: 3 epochs at rate 0.03, then 1000.

The experiment of "Linear Regression Implementation from Scratch" in Dive into Deep Learning: features
standard normal, noise normal with standard deviation 0.01. Its loss is residual^2 / 2, summed over a batch
and divided by the batch's size, which is our objective on that batch: the rate stays 0.03. The book starts at
small random weights; here all start at 0.

Both sides go through the rows in one fixed order where they are compared, since the estimator and a
`DataLoader` shuffle differently. The model is then saved and loaded by a second process.
"""

import argparse
import subprocess
import sys
import warnings
from pathlib import Path

import joblib
import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.exceptions import ConvergenceWarning

from torchlinreg import TorchLinearRegressor

WEIGHTS, BIAS, NOISE = np.array([2.0, -3.4]), 4.2, 0.01
N_ROWS = 1000
BATCH_SIZE = 10
RATE = 0.03
FEW, MANY = 3, 1000  # epochs
NEW_ROW = [1.4627, 0.1506]

LOAD_AND_PREDICT = """
import sys
import joblib
model = joblib.load(sys.argv[1])
row = [float(text) for text in sys.argv[2:]]
print(repr(float(model.predict([row])[0])))
"""


def make_data() -> tuple[np.ndarray, np.ndarray]:
    """The rows, of a fixed seed."""
    random = np.random.default_rng(0)
    X = random.standard_normal((N_ROWS, 2))
    return X, X @ WEIGHTS + BIAS + NOISE * random.standard_normal(N_ROWS)


def plain_loop(X: np.ndarray, y: np.ndarray, n_epochs: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Run the book's loop in the order of the rows: the loss after each epoch, the weights, the bias.

    An epoch of it takes about 10 ms, so it is not run for 1000.
    """
    inputs, targets = torch.from_numpy(X), torch.from_numpy(y)[:, None]
    neuron = torch.nn.Linear(2, 1, dtype=torch.float64)
    torch.nn.init.zeros_(neuron.weight)
    torch.nn.init.zeros_(neuron.bias)
    optimizer = torch.optim.SGD(neuron.parameters(), lr=RATE)
    losses = []
    for _ in range(n_epochs):
        for rows, values in zip(inputs.split(BATCH_SIZE), targets.split(BATCH_SIZE), strict=True):
            loss = ((neuron(rows) - values).square() / 2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(((neuron(inputs) - targets).square() / 2).mean().item())
    return np.array(losses), neuron.weight.detach().numpy()[0], neuron.bias.item()


def train(X: np.ndarray, y: np.ndarray, max_iter: int, *, shuffle: bool = True) -> TorchLinearRegressor:
    """Train as the book does, at its constant rate."""
    neuron = TorchLinearRegressor(
        solver="sgd",
        learning_rate=RATE,
        batch_size=BATCH_SIZE,
        max_iter=max_iter,
        tol=0,
        shuffle=shuffle,
        random_state=0,
    )
    with warnings.catch_warnings():
        # At a constant rate, mini-batches never settle on the optimum.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return neuron.fit(X, y)


def predict_in_second_process(path: Path) -> float:
    """Load the model in another process and predict at the new row there."""
    command = [sys.executable, "-c", LOAD_AND_PREDICT, str(path), *map(str, NEW_ROW)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main(output: Path | None = None) -> dict[str, float]:
    """Train, compare, print and save picture and model; return the figures printed."""
    output = Path(__file__).parent / "output" if output is None else output
    output.mkdir(parents=True, exist_ok=True)
    X, y = make_data()

    few, many = train(X, y, FEW), train(X, y, MANY)
    ordered = train(X, y, FEW, shuffle=False)
    plain_losses, plain_weights, plain_bias = plain_loop(X, y, FEW)
    untuned = TorchLinearRegressor(solver="sgd", batch_size=BATCH_SIZE, random_state=0).fit(X, y)
    exact = TorchLinearRegressor().fit(X, y)
    lstsq = np.linalg.lstsq(np.column_stack([X, np.ones(N_ROWS)]), y, rcond=None)[0]

    for epoch, loss in enumerate(few.loss_curve_, start=1):
        print(f"epoch {epoch}, loss {loss:.9f}")
    loss_difference = float(np.max(np.abs(ordered.loss_curve_ / plain_losses - 1)))
    print(f"in row order, largest relative difference from the plain loop's losses: {loss_difference:.1e}\n")

    table = {
        f"neuron, {FEW} epochs": (*few.coef_, few.intercept_),
        f"neuron, {MANY} epochs": (*many.coef_, many.intercept_),
        f"neuron in order, {FEW} epochs": (*ordered.coef_, ordered.intercept_),
        f"plain loop in order, {FEW} epochs": (*plain_weights, plain_bias),
        "neuron, learning_rate='auto'": (*untuned.coef_, untuned.intercept_),
        "TorchLinearRegressor()": (*exact.coef_, exact.intercept_),
        "numpy.linalg.lstsq": lstsq,
    }
    truth = np.array([*WEIGHTS, BIAS])
    best = np.array([*exact.coef_, exact.intercept_])
    print(f"{'':32}{'error of w':>24}{'error of b':>13}{'largest difference from OLS':>30}")
    for name, parameters in table.items():
        errors = truth - parameters
        weights = f"[{errors[0]:10.3e}, {errors[1]:10.3e}]"
        print(f"{name:32}{weights:>24}{errors[2]:13.3e}{np.max(np.abs(best - parameters)):30.1e}")

    path = output / "minibatch_from_scratch.joblib"
    joblib.dump(many, path)
    here, there = float(many.predict([NEW_ROW])[0]), predict_in_second_process(path)
    noiseless = float(np.dot(NEW_ROW, WEIGHTS) + BIAS)
    print(f"\nat {tuple(NEW_ROW)}: {here!r}, in a second process {there!r}; without noise {noiseless:.5f}")

    figure = Figure(figsize=(7.5, 4.5), layout="constrained")
    axes = figure.subplots()
    lowest = float(np.mean((y - exact.predict(X)) ** 2) / 2)
    for model, color, label in (
        (many, "tab:orange", f"rate {RATE}"),
        (untuned, "tab:red", "learning_rate='auto'"),
    ):
        # The losses are rounded at about 1e-15, since the targets vary by 4.
        excess = np.maximum(model.loss_curve_ - lowest, 1e-15)
        axes.loglog(np.arange(1, len(excess) + 1), excess, color=color, label=label)
    axes.axvline(FEW, color="gray", linestyle=":", label=f"{FEW} epochs")
    axes.set(title=f"Mini-batches of {BATCH_SIZE}", xlabel="epoch")
    axes.set(ylabel="mean of residual² / 2, above least squares")
    axes.legend()
    figure.savefig(output / "minibatch_from_scratch.png", dpi=120)

    return {
        "few_error": float(np.max(np.abs(truth - table[f"neuron, {FEW} epochs"]))),
        "many_error": float(np.max(np.abs(truth - table[f"neuron, {MANY} epochs"]))),
        "few_loss": float(few.loss_curve_[-1]),
        "ordered_difference": float(np.max(np.abs(ordered.coef_ - plain_weights))),
        "ordered_intercept_difference": float(abs(ordered.intercept_ - plain_bias)),
        "loss_difference": loss_difference,
        "untuned_distance": float(np.max(np.abs(best - table["neuron, learning_rate='auto'"]))),
        "prediction": here,
        "second_process_prediction": there,
        "noiseless": noiseless,
        "ols_weight_0": float(best[0]),
        "ols_weight_1": float(best[1]),
        "ols_bias": float(best[2]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, help="folder for picture and model (default: examples/output)")
    main(parser.parse_args().output)
