"""Bands from quantile regression: delivery times whose spread grows with the distance and that are skewed.

Three fits, of the quantiles 0.05, 0.5 and 0.95, make a band of 90 % without a model of the noise. Beside it
the band that least squares gives for normal noise of one width, +- 1.645 standard deviations: it covers about
90 % over all, but all of the short deliveries and too few of the long ones, and it allows for times that
never happen. Coverage is counted on new data.
"""

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from torchlinreg import TorchLinearRegressor, losses

QUANTILES = (0.05, 0.5, 0.95)
NORMAL_95 = 1.6448536269514722
EDGES = np.arange(0.0, 21.0, 4.0)


def make_data(n_samples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw distances in km and times in minutes: 8 + 2.5 per km, and a delay that grows with the way."""
    rng = np.random.default_rng(seed)
    distance = rng.uniform(0.0, 20.0, n_samples)
    delay = rng.gamma(2.0, 0.5 + 0.35 * distance)
    return distance[:, None], 8.0 + 2.5 * distance + delay


def coverage(y: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> float:
    """Share of `y` inside a band."""
    return float(np.mean((lower <= y) & (y <= upper)))


def main(output: Path | None = None) -> dict[str, float]:
    """Fit, count, print and save `quantile_bands.png`; return the figures printed."""
    output = Path(__file__).parent / "output" if output is None else output
    output.mkdir(parents=True, exist_ok=True)
    X, y = make_data(2000, seed=0)
    X_new, y_new = make_data(20000, seed=1)

    fits = {q: TorchLinearRegressor(loss=losses.Quantile(q)).fit(X, y) for q in QUANTILES}
    mean = TorchLinearRegressor().fit(X, y)
    half_width = NORMAL_95 * float(np.std(y - mean.predict(X), ddof=2))

    figures: dict[str, float] = {}
    print(f"{'quantile':>10}{'minutes per km':>16}{'at 0 km':>10}{'share below, fitted':>22}{'new data':>10}")
    for q, model in fits.items():
        below, new_below = (float(np.mean(t <= model.predict(Z))) for Z, t in ((X, y), (X_new, y_new)))
        figures |= {f"slope_{q}": float(model.coef_[0]), f"intercept_{q}": float(model.intercept_)}
        figures |= {f"below_{q}": below, f"new_below_{q}": new_below}
        print(f"{q:10.2f}{model.coef_[0]:16.3f}{model.intercept_:10.2f}{below:22.1%}{new_below:10.1%}")

    bands = {
        "quantile": (fits[0.05].predict(X_new), fits[0.95].predict(X_new)),
        "normal": (mean.predict(X_new) - half_width, mean.predict(X_new) + half_width),
    }
    by_distance: dict[str, list[float]] = {}
    bins = np.digitize(X_new[:, 0], EDGES[1:-1])
    print("\ncoverage of new data, 90 % is due")
    print(f"{'band':>10}{'all':>8}" + "".join(f"{f'{a:.0f}-{b:.0f} km':>11}" for a, b in pairwise(EDGES)))
    for name, (lower, upper) in bands.items():
        figures[f"{name}_coverage"] = coverage(y_new, lower, upper)
        by_distance[name] = [
            coverage(y_new[bins == i], lower[bins == i], upper[bins == i]) for i in range(len(EDGES) - 1)
        ]
        figures |= {f"{name}_least": min(by_distance[name]), f"{name}_most": max(by_distance[name])}
        shares = "".join(f"{share:11.1%}" for share in by_distance[name])
        print(f"{name:>10}{figures[f'{name}_coverage']:8.1%}{shares}")

    figure = Figure(figsize=(10.5, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = np.array([[0.0], [20.0]])
    left.scatter(X[:, 0], y, s=4, color="tab:gray", alpha=0.5, label="2000 deliveries")
    band = [fits[q].predict(ends) for q in (0.05, 0.95)]
    left.fill_between(ends[:, 0], *band, color="tab:blue", alpha=0.2, label="quantiles 0.05 to 0.95")
    for line in band:
        left.plot(ends, line, color="tab:blue")
    left.plot(ends, fits[0.5].predict(ends), color="tab:blue", linewidth=2.5, label="median")
    for sign in (-1, 1):
        label = "least squares ± 1.645 std" if sign > 0 else None
        left.plot(ends, mean.predict(ends) + sign * half_width, "--", color="tab:red", label=label)
    left.set(title="Delivery times", xlabel="distance (km)", ylabel="time (minutes)")
    left.set(xlim=(0, 20), xticks=EDGES)
    left.legend(loc="upper left")
    middles = (EDGES[1:] + EDGES[:-1]) / 2
    right.axhline(0.9, color="black", linewidth=1, label="90 %")
    right.plot(middles, by_distance["quantile"], "o-", color="tab:blue", label="quantiles 0.05 to 0.95")
    right.plot(middles, by_distance["normal"], "s--", color="tab:red", label="least squares ± 1.645 std")
    right.set(
        title="Coverage of 20,000 new deliveries", xlabel="distance (km)", ylabel="share inside the band"
    )
    right.set(xlim=(0, 20), xticks=EDGES, ylim=(0.6, 1.02))
    right.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    right.legend(loc="lower left")
    figure.savefig(output / "quantile_bands.png", dpi=120)
    return figures


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, help="folder for the picture (default: examples/output)")
    main(parser.parse_args().output)
