"""A lasso path: which of ten measurements tell how diabetes progresses, from strong penalties to none.

Scikit-learn's diabetes data, 442 patients: age, sex, body mass index, blood pressure and six blood serum
values against a measure of the disease one year later. `regularization_path` fits all strengths of the
penalty from one pass over the rows, and `TorchLinearRegressorCV` chooses one of them by 5-fold
cross-validation. The columns are standardised first: the penalty counts coefficients in the columns' own
units, and would otherwise weigh a column by its unit.
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from sklearn.preprocessing import StandardScaler

from torchlinreg import TorchLinearRegressor, TorchLinearRegressorCV, regularization_path

N_ALPHAS = 100
NAMES = {
    "age": "age",
    "sex": "sex",
    "bmi": "body mass index",
    "bp": "blood pressure",
    "s1": "cholesterol",
    "s2": "LDL",
    "s3": "HDL",
    "s4": "cholesterol / HDL",
    "s5": "log triglycerides",
    "s6": "blood sugar",
}


def label_lines(axes: Axes, ends: np.ndarray, texts: list[str], colours: list[str], least: float) -> None:
    """Write each text right of the axes at the end of its line, at least so far from the next."""
    order = np.argsort(ends)
    heights = ends[order].astype(float)
    for _ in range(100):  # push those apart that are too close
        for lower in range(len(heights) - 1):
            overlap = least - (heights[lower + 1] - heights[lower])
            if overlap > 0:
                heights[lower : lower + 2] += [-overlap / 2, overlap / 2]
    for index, height in zip(order, heights, strict=True):
        axes.annotate(
            texts[index],
            xy=(1.0, ends[index]),
            xytext=(1.05, height),
            xycoords=axes.get_yaxis_transform(),
            textcoords=axes.get_yaxis_transform(),
            color=colours[index],
            fontsize=9,
            verticalalignment="center",
            arrowprops={"arrowstyle": "-", "color": colours[index], "linewidth": 0.7},
        )


def main(output: Path | None = None) -> dict[str, float]:
    """Fit, print and save `lasso_path.png`; return the figures printed."""
    output = Path(__file__).parent / "output" if output is None else output
    output.mkdir(parents=True, exist_ok=True)
    data = load_diabetes(scaled=False)
    X, y = StandardScaler().fit_transform(data.data), data.target
    names = [NAMES[name] for name in data.feature_names]

    path = regularization_path(X, y, alphas=N_ALPHAS, l1_ratio=1.0)
    chosen = TorchLinearRegressorCV(alphas=path.alphas, l1_ratio=1.0, cv=5).fit(X, y)
    mean_scores = chosen.cv_results_["mean_test_score"]
    exact = TorchLinearRegressor().fit(X, y)

    print(f"strongest penalty, which leaves nothing: alpha = {path.alphas[0]:.2f}")
    print(f"chosen by 5 folds: alpha = {chosen.alpha_:.3f}, mean R2 {mean_scores.max():.4f}")
    print(f"largest relative duality gap on the path: {path.dual_gaps.max():.1e}\n")
    print(f"{'per standard deviation':24}{'chosen':>10}{'least squares':>15}{'enters at alpha':>17}")
    entries = [float(path.alphas[np.flatnonzero(coefs)[0]]) for coefs in path.coefs.T]
    for index in np.argsort(entries)[::-1]:
        values = chosen.coef_[index], exact.coef_[index], entries[index]
        print(f"{names[index]:24}{values[0]:10.2f}{values[1]:15.2f}{values[2]:17.3f}")

    figure = Figure(figsize=(11, 4.8), layout="constrained")
    figure.get_layout_engine().set(wspace=0.06)
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    colours = [f"C{index}" for index in range(len(names))]
    for coefs, colour in zip(path.coefs.T, colours, strict=True):
        left.semilogx(path.alphas, coefs, color=colour, linewidth=1.8)
    left.axvline(chosen.alpha_, color="black", linestyle="--", label=f"chosen: alpha = {chosen.alpha_:.2f}")
    left.axhline(0.0, color="black", linewidth=0.7)
    left.set(title="Lasso path, diabetes data", xlabel="alpha", ylabel="coefficient per standard deviation")
    left.set(xlim=(path.alphas[0], path.alphas[-1]))
    left.xaxis.set_major_formatter("{x:g}")
    left.legend(loc="upper left")
    label_lines(left, path.coefs[-1], names, colours, least=0.045 * np.ptp(left.get_ylim()))
    right.semilogx(path.alphas, mean_scores, color="tab:gray", label="mean R2 of 5 folds")
    right.plot(
        chosen.alpha_, mean_scores.max(), "D", color="black", label=f"chosen: R2 {mean_scores.max():.3f}"
    )
    right.set(title="Cross-validation", xlabel="alpha", ylabel="R2 on the rows left out")
    right.set(xlim=(path.alphas[0], path.alphas[-1]))
    right.xaxis.set_major_formatter("{x:g}")
    right.legend(loc="lower right")
    figure.savefig(output / "lasso_path.png", dpi=120)

    return {
        "alpha": float(chosen.alpha_),
        "r2": float(mean_scores.max()),
        "largest_alpha": float(path.alphas[0]),
        "n_nonzero": float(np.count_nonzero(chosen.coef_)),
        "largest_gap": float(path.dual_gaps.max()),
        **{f"entry_{name}": entry for name, entry in zip(data.feature_names, entries, strict=True)},
        **{f"coef_{name}": float(c) for name, c in zip(data.feature_names, chosen.coef_, strict=True)},
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output", type=Path, help="folder for the picture (default: examples/output)")
    main(parser.parse_args().output)
