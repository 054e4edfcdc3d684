"""Data that tests of several modules share."""

import numpy as np


def three_features(n_samples=50, n_targets=None, seed=0, *, std, mean, noise="normal"):
    """X of three columns with these standard deviations and means, y, and weights of which some are 0.

    y has one dimension without `n_targets`. `noise` is "normal", or "heavy tails": a t distribution of two
    degrees of freedom.
    """
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n_samples, 3)) * std + mean
    coef = np.array([1.0, -2.0, 3.0]) if n_targets is None else rng.standard_normal((3, n_targets))
    shape = (n_samples, *coef.shape[1:])
    error = rng.standard_normal(shape) if noise == "normal" else rng.standard_t(2, shape)
    return X, 1 + X @ coef + 0.5 * error, rng.integers(0, 4, n_samples) / 2.0
