"""The loaders: one CSV file each, its columns chosen, in the shape of scikit-learn's loaders."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from sklearn.utils import Bunch

if TYPE_CHECKING:
    import pandas as pd

Loaded: TypeAlias = "Bunch | tuple[np.ndarray, np.ndarray] | tuple[pd.DataFrame, pd.Series]"

_DATA = Path(__file__).parent / "data"

_HUBBLE_FILES = {
    "freedman24": "hubble_freedman24.csv",
    "freedman23": "hubble_freedman23.csv",
    "1929": "hubble1929.csv",
}


def load_hubble(
    *,
    version: Literal["freedman24", "freedman23", "1929"] = "freedman24",
    return_X_y: bool = False,
    as_frame: bool = False,
) -> Loaded:
    """Load velocities and distances of galaxies (Hubble's law).

    One feature, the distance in Mpc; the target is the recession velocity in km/s. The slope is an
    estimate of the Hubble constant.

    Parameters
    ----------
    version : {"freedman24", "freedman23", "1929"}, default="freedman24"
        ``"freedman24"`` are the 24 galaxies with Cepheid distances of the HST Key Project [1]_,
        ``"freedman23"`` the same without NGC 4639, ``"1929"`` the 24 nebulae of Hubble's own
        table [2]_.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.
    as_frame : bool, default=False
        Return a pandas DataFrame and Series, with the galaxies' names as index.

    Returns
    -------
    Bunch or tuple (data, target)
        The Bunch holds ``data`` (n_samples, 1), ``target`` (n_samples,), ``frame`` (both of them,
        or None unless `as_frame`), ``feature_names``, ``target_names``, ``DESCR`` (content,
        source and status) and ``filename`` (the path of the CSV file).

    Raises
    ------
    ValueError
        If `version` is none of those named.

    References
    ----------
    .. [1] Freedman et al. (2001), Final results from the Hubble Space Telescope Key Project to
           measure the Hubble constant, Astrophysical Journal 553, 47-72.
    .. [2] Hubble, E. (1929), A relation between distance and radial velocity among extra-galactic
           nebulae, Proceedings of the National Academy of Sciences 15(3), 168-173.

    Examples
    --------
    >>> from torchlinreg.datasets import load_hubble
    >>> hubble = load_hubble()
    >>> hubble.data.shape, hubble.feature_names
    ((24, 1), ['distance_mpc'])
    >>> load_hubble(as_frame=True).frame.head(2)
              distance_mpc  velocity_km_s
    galaxy
    NGC0300           2.00          133.0
    NGC0925           9.16          664.0
    """
    if version not in _HUBBLE_FILES:
        raise ValueError(f"version must be one of {list(_HUBBLE_FILES)}, got {version!r}")
    file = _HUBBLE_FILES[version]
    return _load(file, ["distance_mpc"], "velocity_km_s", return_X_y=return_X_y, as_frame=as_frame)


def load_plant_richness(
    *, covariates: bool = False, return_X_y: bool = False, as_frame: bool = False
) -> Loaded:
    """Load the number of native plant species and the area of 22 islands.

    The target is log10 of the number of species, the feature log10 of the area in hectares.

    Parameters
    ----------
    covariates : bool, default=False
        Add the latitude in degrees north and the distance to the mainland as features.
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.
    as_frame : bool, default=False
        Return a pandas DataFrame and Series, with the islands' names as index.

    Returns
    -------
    Bunch or tuple (data, target)
        The Bunch holds ``data`` (22, 1) or (22, 3), ``target`` (22,), ``frame`` (both of them, or
        None unless `as_frame`), ``feature_names``, ``target_names``, ``DESCR`` (content, source
        and status) and ``filename`` (the path of the CSV file).

    References
    ----------
    .. [1] McMaster, R. T. (2005), Factors influencing vascular plant diversity on 22 islands off
           the coast of eastern North America, Journal of Biogeography 32(3), 475-492.

    Examples
    --------
    >>> from torchlinreg.datasets import load_plant_richness
    >>> load_plant_richness(covariates=True).feature_names
    ['area', 'latitude', 'dist_mainland']
    >>> X, y = load_plant_richness(return_X_y=True)
    >>> X.shape, y.shape
    ((22, 1), (22,))
    """
    features = ["area", "latitude", "dist_mainland"] if covariates else ["area"]
    return _load("plant_richness.csv", features, "ntv_rich", return_X_y=return_X_y, as_frame=as_frame)


def load_perceptron25(*, return_X_y: bool = False, as_frame: bool = False) -> Loaded:
    """Load the 25 made-up pairs of a tutorial on linear regression with PyTorch.

    Parameters
    ----------
    return_X_y : bool, default=False
        Return ``(data, target)`` instead of a Bunch.
    as_frame : bool, default=False
        Return a pandas DataFrame and Series.

    Returns
    -------
    Bunch or tuple (data, target)
        The Bunch holds ``data`` (25, 1), ``target`` (25,), ``frame`` (both of them, or None unless
        `as_frame`), ``feature_names``, ``target_names``, ``DESCR`` (content, source and status)
        and ``filename`` (the path of the CSV file).

    References
    ----------
    .. [1] Linear Regression with Perceptron Using the PyTorch Library in Python, Data Science
           Blogathon.

    Examples
    --------
    >>> from torchlinreg.datasets import load_perceptron25
    >>> X, y = load_perceptron25(return_X_y=True)
    >>> X.shape, y[:3].tolist()
    ((25, 1), [2.6, 1.6, 3.09])
    """
    return _load("perceptron25.csv", ["x"], "y", return_X_y=return_X_y, as_frame=as_frame)


def _load(file: str, features: Sequence[str], target: str, *, return_X_y: bool, as_frame: bool) -> Loaded:
    """Read columns of one file; a first column of names becomes the index of a frame."""
    path = _DATA / file
    with path.open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    # float() rounds correctly; a faster parser need not.
    data = np.array([[float(row[name]) for name in features] for row in rows])
    values = np.array([float(row[target]) for row in rows])
    frame = None
    if as_frame:
        import pandas as pd

        first = next(iter(rows[0]))
        named = first not in (*features, target)
        index = pd.Index([row[first] for row in rows], name=first) if named else None
        frame = pd.DataFrame({**dict(zip(features, data.T, strict=True)), target: values}, index)
        data, values = frame[list(features)], frame[target]
    if return_X_y:
        return data, values
    return Bunch(
        data=data,
        target=values,
        frame=frame,
        feature_names=list(features),
        target_names=[target],
        DESCR=_description(file),
        filename=str(path),
    )


def _description(file: str) -> str:
    """Return the section of data/README.md about one file."""
    readme = (_DATA / "README.md").read_text(encoding="utf-8")
    sections = dict(section.split("\n", 1) for section in readme.split("\n## ")[1:])
    return sections[file].strip() + "\n"
