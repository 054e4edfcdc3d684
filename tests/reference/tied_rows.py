"""Small problems with several optima, fitted in another order of rows and with repeated ones."""

from functools import cached_property

import numpy as np

from torchlinreg import TorchLinearRegressor


class TiedRows:
    """Rows of integers, wide or tall, of which many tie, and fits to them with these parameters."""

    def __init__(self, seed, parameters, *, dependent=True):
        self.rng = rng = np.random.default_rng(seed)
        self.n = n = int(rng.integers(4, 12))
        self.p = p = int(rng.integers(n, 2 * n) if seed % 2 else rng.integers(1, 4))
        self.X = np.rint(2 * rng.standard_normal((n, p)))
        if dependent and p > 1 and seed % 3 == 0:
            self.X[:, -1] = 2 * self.X[:, 0]
        self.y = np.rint(2 * rng.standard_normal(n))
        self.weight = rng.integers(1, 4, n)
        self.order = rng.permutation(n)
        self.parameters = parameters

    def fit(self, X, y, weight=None):
        return TorchLinearRegressor(**self.parameters).fit(X, y, sample_weight=weight)

    @cached_property
    def fitted(self):
        return self.fit(self.X, self.y, self.weight)

    def others(self):
        """Fits of rows in another order and of rows that are repeated."""
        yield self.fit(self.X[self.order], self.y[self.order], self.weight[self.order])
        yield self.fit(np.repeat(self.X, self.weight, 0), np.repeat(self.y, self.weight))
