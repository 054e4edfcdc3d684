"""The data sets are the published numbers, and the loaders look like scikit-learn's."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from torchlinreg.datasets import load_hubble, load_perceptron25, load_plant_richness

# Exact least squares of the float64 numbers (rational arithmetic): intercept, coefficients and
# R-squared. A wrong digit anywhere in a file would show.
TRUTHS = {
    "hubble": (load_hubble, [6.69625465073728718, 76.1269568572890853], 0.745082247559357),
    "hubble23": (
        partial(load_hubble, version="freedman23"),
        [-30.6679035488811369, 80.3776672338468049],
        0.750470547958631,
    ),
    "hubble1929": (
        partial(load_hubble, version="1929"),
        [-40.7836490958604486, 454.158440922628385],
        0.623530520906752,
    ),
    "plant_richness": (
        load_plant_richness,
        [1.33604828214935473, 0.355739359258352240],
        0.827786073390723,
    ),
    "plant_richness_covariates": (
        partial(load_plant_richness, covariates=True),
        [5.10452377104868379, 0.349725663252015219, -0.0863397940940608427, -0.0047000357892153364],
        0.915463938154179862,
    ),
    "perceptron25": (
        load_perceptron25,
        [1.40450230020462664, 0.175071598215471098],
        0.313325966840883,
    ),
}


@pytest.mark.parametrize("name", TRUTHS)
def test_least_squares_of_the_file_is_the_published_one(name):
    load, truth, r_squared = TRUTHS[name]
    X, y = load(return_X_y=True)
    design = np.column_stack([np.ones(len(y)), X])
    coef = np.linalg.lstsq(design, y, rcond=None)[0]
    np.testing.assert_allclose(coef, truth, rtol=1e-12)
    residual = y - design @ coef
    assert 1 - residual @ residual / np.sum((y - y.mean()) ** 2) == pytest.approx(r_squared, rel=1e-12)


@pytest.mark.parametrize("name", TRUTHS)
def test_bunch_arrays_and_frames_hold_the_same(name):
    load = TRUTHS[name][0]
    bunch, framed = load(), load(as_frame=True)
    n_samples, n_features = bunch.data.shape
    assert bunch.frame is None
    assert bunch.data.dtype == bunch.target.dtype == np.float64
    assert bunch.target.shape == (n_samples,)
    assert list(framed.data.columns) == bunch.feature_names == framed.feature_names
    assert [framed.target.name] == bunch.target_names
    assert list(framed.frame.columns) == bunch.feature_names + bunch.target_names
    assert n_features == len(bunch.feature_names)
    for data, target in [
        (framed.data, framed.target),
        load(return_X_y=True),
        load(return_X_y=True, as_frame=True),
    ]:
        np.testing.assert_array_equal(data, bunch.data)
        np.testing.assert_array_equal(target, bunch.target)


@pytest.mark.parametrize("name", TRUTHS)
def test_description_names_content_source_and_status(name):
    bunch = TRUTHS[name][0]()
    assert "\nSource: " in bunch.DESCR
    assert "\nStatus: " in bunch.DESCR
    for column in bunch.feature_names + bunch.target_names:
        assert f"`{column}`" in bunch.DESCR
    assert Path(bunch.filename).is_file()


def test_rows_are_named():
    assert list(load_hubble(as_frame=True).frame.index[:2]) == ["NGC0300", "NGC0925"]
    assert "NGC4639" not in load_hubble(version="freedman23", as_frame=True).frame.index
    assert load_plant_richness(as_frame=True).target["Block Island"] == 2.597695186


def test_unknown_version_names_the_known_ones():
    with pytest.raises(ValueError, match=r"freedman24.*freedman23.*1929.*'2024'"):
        load_hubble(version="2024")
