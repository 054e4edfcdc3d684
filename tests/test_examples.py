"""The examples: each runs, agrees with truths found another way, and saves pictures that can be opened."""

import importlib.util
import re
import runpy
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso
from sklearn.model_selection import cross_val_score
from sklearn.preprocessing import StandardScaler

from torchlinreg import TorchLinearRegressor
from torchlinreg.datasets import load_hubble, load_perceptron25, load_plant_richness

pytest.importorskip("matplotlib", reason="the examples draw with matplotlib")

EXAMPLES = Path(__file__).parent.parent / "examples"
SCRIPTS = [
    "hubble",
    "hubble_outliers",
    "lasso_path",
    "minibatch_from_scratch",
    "perceptron_25_points",
    "plant_richness",
    "quantile_bands",
    "synthetic_line_animated",
]
needs_callbacks = pytest.mark.skipif(
    importlib.util.find_spec("sklearn.callback") is None,
    reason="CoefficientHistory needs scikit-learn 1.9 or later",
)


class Run(NamedTuple):
    """What a script returned and printed, and where it saved."""

    script: ModuleType
    figures: dict[str, Any]
    printed: str
    output: Path


def run(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a script's `main`, with a folder that is not there yet."""
    script, output = load(name), tmp_path / "new" / "folder"
    figures = script.main(output)
    return Run(script, figures, capsys.readouterr().out, output)


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"examples_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def exact_line(X: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Slope, intercept and R2 of least squares on one feature, in rational arithmetic."""
    x, t = [Fraction(value) for value in X[:, 0]], [Fraction(value) for value in y]
    x_mean, t_mean = sum(x) / len(x), sum(t) / len(t)
    square = sum((a - x_mean) ** 2 for a in x)
    product = sum((a - x_mean) * (b - t_mean) for a, b in zip(x, t, strict=True))
    slope = product / square
    r2 = slope * product / sum((b - t_mean) ** 2 for b in t)
    return float(slope), float(t_mean - slope * x_mean), float(r2)


def descend(X: np.ndarray, y: np.ndarray, rate: float, n_epochs: int) -> tuple[np.ndarray, np.ndarray]:
    """Gradient descent from 0 on the mean of residual^2 / 2: lines (slope, intercept) and losses by epoch."""
    design = np.column_stack([X, np.ones(len(X))])
    lines = np.zeros((n_epochs + 1, 2))
    for epoch in range(n_epochs):
        residuals = design @ lines[epoch] - y
        lines[epoch + 1] = lines[epoch] - rate * (design.T @ residuals) / len(y)
    return lines, np.mean((lines @ design.T - y) ** 2, axis=1) / 2


def assert_line(figures: dict[str, Any], kind: str, slope: float, intercept: float, rtol: float) -> None:
    found = figures[f"{kind}slope"], figures[f"{kind}intercept"]
    np.testing.assert_allclose(found, (slope, intercept), rtol=rtol)


def assert_is_picture(path: Path, n_frames: int = 1) -> None:
    from PIL import Image

    with Image.open(path) as picture:
        assert getattr(picture, "n_frames", 1) == n_frames
        assert min(picture.size) > 200
        first = np.asarray(picture.convert("RGB"))
        assert len(np.unique(first.reshape(-1, 3), axis=0)) > 10  # not blank
        if n_frames > 1:
            picture.seek(n_frames - 1)
            assert (np.asarray(picture.convert("RGB")) != first).any()


@pytest.mark.exhaustive
def test_perceptron_25_points(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, figures, printed, output = run("perceptron_25_points", tmp_path, capsys)
    X, y = load_perceptron25(return_X_y=True)
    slope, intercept, r2 = exact_line(X, y)
    lines, losses = descend(X, y, rate=0.05, n_epochs=4000)
    assert_line(figures, "ols_", slope, intercept, rtol=1e-12)
    assert_line(figures, "polyfit_", slope, intercept, rtol=1e-12)
    assert_line(figures, "", slope, intercept, rtol=1e-9)
    assert_line(figures, "", *lines[-1], rtol=1e-12)
    assert_line(figures, "plain_", *lines[-1], rtol=1e-12)
    assert figures["r2"] == pytest.approx(r2, rel=1e-9)
    assert figures["loss_difference"] < 1e-9
    # A sum over 25 rows without a 1/2.
    np.testing.assert_allclose(figures["losses"], 50 * losses[100::100], rtol=1e-9)
    assert re.findall(r"^ *(\d+) +\d", printed, flags=re.MULTILINE) == [
        str(epoch) for epoch in range(100, 4001, 100)
    ]
    assert_is_picture(output / "perceptron_25_points.png")


@pytest.mark.exhaustive
def test_plant_richness(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, figures, printed, output = run("plant_richness", tmp_path, capsys)
    X, y = load_plant_richness(return_X_y=True)
    slope, intercept, r2 = exact_line(X, y)
    lines, losses = descend(X, y, rate=0.004, n_epochs=6000)
    assert_line(figures, "ols_", slope, intercept, rtol=1e-12)
    assert_line(figures, "polyfit_", slope, intercept, rtol=1e-12)
    assert_line(figures, "untuned_", slope, intercept, rtol=1e-9)
    assert_line(figures, "", *lines[-1], rtol=1e-9)
    assert_line(figures, "plain_", *lines[-1], rtol=1e-9)
    assert figures["loss"] == pytest.approx(2 * losses[-1], rel=1e-9)
    assert figures["loss_difference"] < 1e-9
    assert figures["ols_r2"] == pytest.approx(r2, rel=1e-12)
    # The optimum has the largest R2; what a line loses to it grows as the square of the distance.
    loss = 2 * losses[-1] / np.var(y)
    assert figures["r2"] == pytest.approx(1 - loss, rel=1e-9)
    assert r2 - 1e-4 < figures["r2"] < r2
    assert figures["prediction"] == pytest.approx(lines[-1] @ [3, 1], rel=1e-9)
    assert figures["ols_prediction"] == pytest.approx(3 * slope + intercept, rel=1e-12)
    assert "before the optimum was reached" in printed
    assert_is_picture(output / "plant_richness.png")


def test_hubble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, figures, printed, output = run("hubble", tmp_path, capsys)
    X, y = load_hubble(version="freedman23", return_X_y=True)
    slope, intercept, r2 = exact_line(X, y)
    assert len(y) == 23
    assert_line(figures, "ols_", slope, intercept, rtol=1e-12)
    assert_line(figures, "", slope, intercept, rtol=1e-9)
    assert figures["polyfit_slope"] == pytest.approx(slope, rel=1e-12)
    assert figures["correlation"] == pytest.approx(r2**0.5, rel=1e-12)
    for age in (figures["age"], figures["polyfit_age"]):
        assert age == pytest.approx(12.16, abs=0.01)
        # 1 Mpc is 3.0857e19 km, 1e9 Julian years are 3.15576e16 s.
        assert age == pytest.approx(3.0857e19 / 3.15576e16 / slope, rel=1e-4)
    lines, _ = descend(X / X.max(), y / y.max(), rate=0.1, n_epochs=300)
    in_units = lines[-1] * [y.max() / X.max(), y.max()]
    assert_line(figures, "undertrained_", *in_units, rtol=1e-9)
    assert_line(figures, "plain_", *in_units, rtol=1e-9)
    assert figures["undertrained_age"] == pytest.approx(977.8 / in_units[0], rel=1e-9)
    assert figures["undertrained_age"] > 14
    assert figures["loss_difference"] < 1e-9
    assert "OPTIMAL" in printed
    assert "MAX_ITER" in printed
    assert_is_picture(output / "hubble.png")


@pytest.mark.exhaustive
@needs_callbacks
def test_synthetic_line_animated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, figures, printed, output = run("synthetic_line_animated", tmp_path, capsys)
    X, y = script.make_data()
    assert X.shape == (250, 1)
    assert X.min() >= 0
    assert X.max() <= 1
    assert np.std(y - 2 * X[:, 0] - 3) == pytest.approx(0.25, rel=0.1)
    slope, intercept, _ = exact_line(X, y)
    lines, _ = descend(X, y, rate=0.02, n_epochs=200)
    assert_line(figures, "ols_", slope, intercept, rtol=1e-12)
    assert_line(figures, "polyfit_", slope, intercept, rtol=1e-12)
    assert_line(figures, "", *lines[-1], rtol=1e-9)
    assert_line(figures, "plain_", *lines[-1], rtol=1e-9)
    assert figures["history_difference"] < 1e-9
    assert figures["loss_difference"] < 1e-9
    assert "before the optimum was reached" in printed
    gif, html = (output / f"synthetic_line_animated.{ending}" for ending in ("gif", "html"))
    assert figures["n_frames"] == 26
    assert_is_picture(gif, n_frames=26)
    assert html.read_text(encoding="utf-8").count("data:image/png;base64,") == 26
    assert max(gif.stat().st_size, html.stat().st_size) < 3e6


def test_synthetic_line_animated_without_callbacks_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def refuse(self: TorchLinearRegressor, *callbacks: Any) -> None:
        raise NotImplementedError("Callbacks need scikit-learn 1.9 or later; 1.6.0 is installed.")

    path = str(EXAMPLES / "synthetic_line_animated.py")
    monkeypatch.setattr(TorchLinearRegressor, "set_callbacks", refuse)
    monkeypatch.setattr(sys, "argv", [path, "--output", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        runpy.run_path(path, run_name="__main__")
    assert re.fullmatch(r"synthetic_line_animated\.py: .*1\.9 or later.*", str(end.value.code))


@pytest.mark.exhaustive
def test_minibatch_from_scratch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, figures, printed, output = run("minibatch_from_scratch", tmp_path, capsys)
    X, y = script.make_data()
    assert X.shape == (1000, 2)
    assert np.std(y - X @ [2, -3.4] - 4.2) == pytest.approx(0.01, rel=0.1)
    design = np.column_stack([X, np.ones(1000)])
    best = np.linalg.solve(design.T @ design, design.T @ y)
    found = [figures[name] for name in ("ols_weight_0", "ols_weight_1", "ols_bias")]
    np.testing.assert_allclose(found, best, rtol=1e-12)
    assert figures["untuned_distance"] < 1e-9
    # Against the book's loop, in the same order of the rows.
    assert figures["ordered_difference"] < 1e-9
    assert figures["ordered_intercept_difference"] < 1e-9
    assert figures["loss_difference"] < 1e-9
    # Both come as near to the truth as the noise of 1000 rows lets them.
    assert figures["few_error"] < 3e-3
    assert figures["many_error"] < 3e-3
    lowest = np.mean((design @ best - y) ** 2) / 2
    assert lowest < figures["few_loss"] < 1.1 * lowest
    assert figures["noiseless"] == pytest.approx(2 * 1.4627 - 3.4 * 0.1506 + 4.2)
    assert figures["prediction"] == pytest.approx(figures["noiseless"], abs=0.01)
    assert figures["second_process_prediction"] == figures["prediction"]
    assert printed.count("epoch ") == 3
    assert "error of w" in printed
    assert "error of b" in printed
    assert (output / "minibatch_from_scratch.joblib").is_file()
    assert_is_picture(output / "minibatch_from_scratch.png")


@pytest.mark.exhaustive
def test_hubble_outliers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, figures, printed, output = run("hubble_outliers", tmp_path, capsys)
    X, y = load_hubble(return_X_y=True)
    wrong = y.copy()
    wrong[np.argsort(X[:, 0])[-3:]] *= 0.1
    assert figures["squared_error_clean_slope"] == pytest.approx(exact_line(X, y)[0], rel=1e-12)
    assert figures["squared_error_slope"] == pytest.approx(exact_line(X, wrong)[0], rel=1e-12)
    for velocities, end in ((y, "_clean_slope"), (wrong, "_slope")):
        slope, scale = huber_line(X, velocities)
        assert figures[f"huber{end}"] == pytest.approx(slope, rel=1e-9)
        assert figures[f"absolute_error{end}"] == pytest.approx(least_absolute_slope(X, velocities), rel=1e-9)
    assert figures["scale"] == pytest.approx(scale, rel=1e-9)
    # A bounded force: the slope of the squared error grows with the error, the others' does not.
    assert figures["squared_error_greatest_slope"] > 500
    assert figures["huber_greatest_slope"] < 1.5 * figures["huber_clean_slope"]
    assert figures["absolute_error_greatest_slope"] < 1.5 * figures["absolute_error_clean_slope"]
    assert "-57.5%" in printed
    assert_is_picture(output / "hubble_outliers.png")


def huber_line(X: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and scale of the Huber fit, by reweighting; HuberRegressor has four to seven digits here."""
    design = np.column_stack([np.ones(len(y)), X])
    line, scale = np.zeros(2), float(np.std(y))
    for _ in range(1000):
        size = np.maximum(np.abs(y - design @ line), 1e-9)
        # Where the joint loss is least, the mean of this is 1.
        scale *= float(np.sqrt(np.mean(np.minimum(size / scale, 1.35) ** 2)))
        weights = np.minimum(1.0, 1.35 * scale / size)
        line = np.linalg.solve(design.T @ (weights[:, None] * design), design.T @ (weights * y))
    return float(line[1]), scale


def least_absolute_slope(X: np.ndarray, y: np.ndarray) -> float:
    """The slope of least absolute residuals, which some line through two points has."""
    first, second = np.triu_indices(len(y), 1)
    x = X[:, 0]
    slopes = (y[second] - y[first]) / (x[second] - x[first])
    residuals = y - y[first, None] - slopes[:, None] * (x - x[first, None])
    return float(slopes[np.abs(residuals).sum(axis=1).argmin()])


def test_quantile_bands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script, figures, printed, output = run("quantile_bands", tmp_path, capsys)
    X, y = script.make_data(2000, seed=0)
    design = np.column_stack([np.ones(len(y)), X])
    for quantile in (0.05, 0.5, 0.95):
        # The share below is right to the points that the line goes through, and no line does better.
        assert figures[f"below_{quantile}"] == pytest.approx(quantile, abs=2 / 2000)
        assert figures[f"new_below_{quantile}"] == pytest.approx(quantile, abs=0.015)
        line = np.array([figures[f"intercept_{quantile}"], figures[f"slope_{quantile}"]])
        loss = pinball(y - design @ line, quantile)
        for change in np.random.default_rng(0).normal(size=(200, 2)) * [0.1, 0.01]:
            assert pinball(y - design @ (line + change), quantile) >= loss
    # Of a gamma distribution of shape 2, the median at 0.35 minutes per km.
    assert figures["slope_0.5"] == pytest.approx(2.5 + 0.35 * 1.67835, rel=0.02)
    assert figures["quantile_coverage"] == pytest.approx(0.9, abs=0.015)
    assert figures["quantile_least"] > 0.88
    assert figures["quantile_most"] < 0.94
    assert figures["normal_least"] < 0.8
    assert figures["normal_most"] > 0.99
    assert f"{figures['quantile_coverage']:.1%}" in printed
    assert_is_picture(output / "quantile_bands.png")


def pinball(residuals: np.ndarray, quantile: float) -> float:
    return float(np.mean(np.maximum(quantile * residuals, (quantile - 1) * residuals)))


@pytest.mark.exhaustive
def test_lasso_path(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, figures, printed, output = run("lasso_path", tmp_path, capsys)
    data = load_diabetes(scaled=False)
    X, y = StandardScaler().fit_transform(data.data), data.target
    correlations = np.abs(X.T @ (y - y.mean())) / len(y)
    assert figures["largest_alpha"] == pytest.approx(correlations.max(), rel=1e-12)
    assert figures["largest_gap"] < 1e-10
    lasso = Lasso(alpha=figures["alpha"], tol=1e-14, max_iter=100_000).fit(X, y)
    found = np.array([figures[f"coef_{name}"] for name in data.feature_names])
    np.testing.assert_allclose(found, lasso.coef_, atol=1e-6)
    assert figures["n_nonzero"] == np.count_nonzero(lasso.coef_) == 9
    # The best of the strengths, by the same folds.
    alphas = np.geomspace(correlations.max(), 1e-3 * correlations.max(), 100)
    scores = [
        cross_val_score(Lasso(alpha=alpha, tol=1e-10, max_iter=100_000), X, y, cv=5).mean()
        for alpha in alphas[40:]
    ]
    assert figures["alpha"] == pytest.approx(alphas[40 + int(np.argmax(scores))], rel=1e-9)
    assert figures["r2"] == pytest.approx(max(scores), rel=1e-9)
    # Where a coefficient enters, it is not zero, and at the strength before it is.
    for name, ratio in ("bmi", 0.999), ("age", 0.999):
        entry = figures[f"entry_{name}"]
        column = data.feature_names.index(name)
        before = entry * (alphas[0] / alphas[1])
        at, above = (
            Lasso(alpha=a, tol=1e-14, max_iter=100_000).fit(X, y).coef_[column]
            for a in (entry * ratio, before)
        )
        assert at != 0
        assert above == 0
    assert "log triglycerides" in printed
    assert_is_picture(output / "lasso_path.png")


@pytest.mark.exhaustive
def test_runs_from_the_command_line(tmp_path: Path) -> None:
    script = EXAMPLES / "perceptron_25_points.py"
    command = [sys.executable, "-W", "error", str(script), "--output", str(tmp_path / "new")]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    assert "numpy.polyfit" in finished.stdout
    assert_is_picture(tmp_path / "new" / "perceptron_25_points.png")


def test_readme_names_every_script() -> None:
    readme = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert sorted(path.stem for path in EXAMPLES.glob("*.py")) == SCRIPTS
    assert re.findall(r"^\| `(\w+)\.py`", readme, flags=re.MULTILINE) == [
        "perceptron_25_points",
        "plant_richness",
        "hubble",
        "synthetic_line_animated",
        "minibatch_from_scratch",
        "hubble_outliers",
        "quantile_bands",
        "lasso_path",
    ]
