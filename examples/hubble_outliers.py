"""Hubble's law with three wrong velocities: what squared error, Huber loss and absolute error make of them.

The three farthest of 24 galaxies have lost the last digit of their velocity. Far points have leverage, so
this is a hard case: the squared error follows them, and the universe becomes more than twice as old. With
the other two losses the force of a point is bounded: they give up some of the slope, and no more however
large the error is, as the second picture shows. No column is scaled by hand, and no scale is chosen.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from torchlinreg import TorchLinearRegressor
from torchlinreg.datasets import load_hubble

AGE = 977.8  # Gyr km/s/Mpc; divided by a slope in km/s/Mpc, it is an age in Gyr
N_OUTLIERS = 3
LOSSES = {
    "squared_error": ("squared error", "tab:red", "-"),
    "huber": ("Huber", "tab:blue", "-"),
    "absolute_error": ("absolute error", "tab:green", "--"),
}


def fit_all(X: np.ndarray, y: np.ndarray) -> dict[str, TorchLinearRegressor]:
    """Fit a line with each loss."""
    return {loss: TorchLinearRegressor(loss=loss).fit(X, y) for loss in LOSSES}


def main(output: Path | None = None) -> dict[str, float]:
    """Fit, print and save `hubble_outliers.png`; return the figures printed."""
    output = Path(__file__).parent / "output" if output is None else output
    output.mkdir(parents=True, exist_ok=True)
    X, y = load_hubble(return_X_y=True)
    farthest = np.argsort(X[:, 0])[-N_OUTLIERS:]

    def with_error(factor: float) -> np.ndarray:
        return np.where(np.isin(np.arange(len(y)), farthest), factor * y, y)

    wrong = with_error(0.1)
    clean_fits, fits = fit_all(X, y), fit_all(X, wrong)

    figures: dict[str, float] = {}
    print(f"{'':18}{'24 galaxies':>16}{'':8}{'3 of them wrong':>16}")
    print(f"{'loss':18}{'slope':>12}{'age':>12}{'slope':>12}{'age':>12}{'change':>10}")
    print(f"{'':18}{'km/s/Mpc':>12}{'Gyr':>12}{'km/s/Mpc':>12}{'Gyr':>12}{'':>10}")
    for loss, (name, _, _) in LOSSES.items():
        before, after = float(clean_fits[loss].coef_[0]), float(fits[loss].coef_[0])
        figures |= {f"{loss}_clean_slope": before, f"{loss}_slope": after}
        ages = AGE / before, AGE / after
        print(f"{name:18}{before:12.3f}{ages[0]:12.2f}{after:12.3f}{ages[1]:12.2f}{after / before - 1:10.1%}")
    figures["scale"] = float(fits["huber"].scale_)
    print(f"scale of the residuals that the Huber fit found: {figures['scale']:.1f} km/s")

    # The same three velocities, wrong by other factors.
    factors = np.geomspace(0.1, 10, 61)
    slopes = {loss: np.empty(len(factors)) for loss in LOSSES}
    for index, factor in enumerate(factors):
        for loss, model in fit_all(X, with_error(factor)).items():
            slopes[loss][index] = model.coef_[0]
    for loss in LOSSES:
        figures[f"{loss}_greatest_slope"] = float(slopes[loss].max())

    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = np.array([[0.0], [1.05 * X.max()]])
    good = np.setdiff1d(np.arange(len(y)), farthest)
    left.scatter(X[good, 0], y[good], color="tab:gray", label="21 galaxies")
    left.scatter(
        X[farthest, 0], y[farthest], facecolors="none", edgecolors="tab:gray", label="3, as measured"
    )
    left.scatter(X[farthest, 0], wrong[farthest], color="black", marker="X", s=60, label="3, a digit lost")
    for loss, (name, colour, style) in LOSSES.items():
        slope = figures[f"{loss}_slope"]
        label = f"{name}: {AGE / slope:.1f} Gyr"
        left.plot(ends, fits[loss].predict(ends), color=colour, linestyle=style, linewidth=2, label=label)
    left.set(title="Hubble's law with three wrong velocities")
    left.set(xlabel="distance (Mpc)", ylabel="recession velocity (km/s)", ylim=(-100, 2500))
    left.legend(loc="upper left", ncols=2, fontsize=9)
    for loss, (name, colour, style) in LOSSES.items():
        right.semilogx(factors, slopes[loss], color=colour, linestyle=style, linewidth=2, label=name)
    right.axvline(1.0, color="tab:gray", linestyle=":", label="as measured")
    right.set(title="Slope, as the error of the three grows")
    right.set_xticks([0.1, 0.2, 0.5, 1, 2, 5, 10], ["0.1", "0.2", "0.5", "1", "2", "5", "10"])
    right.minorticks_off()
    right.set(xlabel="factor on the three velocities", ylabel="slope (km/s/Mpc)")
    right.legend(loc="upper left")
    figure.savefig(output / "hubble_outliers.png", dpi=120)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, help="folder for the picture (default: examples/output)")
    main(parser.parse_args().output)
