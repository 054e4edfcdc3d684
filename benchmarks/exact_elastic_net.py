"""Elastic nets of few features within bounds in rational arithmetic: the minimum of the float64 numbers."""

from fractions import Fraction
from itertools import product

import numpy as np


def _rational(values):
    return [Fraction(float(value)) for value in np.ravel(values)]


class ExactElasticNet:
    """The objective of rows, weights and a `Penalty`, without rounding.

    Its minimum comes from the pieces of all coefficients (negative, zero, positive, at a bound) that satisfy
    the optimality conditions.
    """

    def __init__(self, X, y, penalty, weight=None, fit_intercept=True):
        rows = [_rational(row) for row in np.asarray(X, dtype=float)]
        self.y = _rational(y)
        self.fit_intercept = fit_intercept
        weight = [Fraction(1)] * len(rows) if weight is None else _rational(weight)
        self.share = [w / sum(weight) for w in weight]
        self.columns = [list(column) for column in zip(*rows, strict=True)]
        self.l1, self.l2 = _rational(penalty.l1), _rational(penalty.l2)
        self.lower, self.upper = (
            [None if np.isinf(bound) else Fraction(float(bound)) for bound in bounds]
            for bounds in (penalty.lower, penalty.upper)
        )
        centred = [self._centred(column) for column in self.columns]
        target = self._centred(self.y)
        self.square = self._mean(target, target)
        self.gram = [[self._mean(a, b) for b in centred] for a in centred]
        self.cross = [self._mean(a, target) for a in centred]

    def _mean(self, a, b):
        return sum(w * p * q for w, p, q in zip(self.share, a, b, strict=True))

    def _centred(self, column):
        mean = sum(w * x for w, x in zip(self.share, column, strict=True)) if self.fit_intercept else 0
        return [x - mean for x in column]

    def objective(self, coef, intercept):
        """At a model as float64 numbers."""
        coef, (constant,) = _rational(coef), _rational(intercept)
        total = [y - constant for y in self.y]
        for c, column in zip(coef, self.columns, strict=True):
            total = [r - c * x for r, x in zip(total, column, strict=True)]
        return self._mean(total, total) / 2 + self._penalty(coef)

    def _penalty(self, coef):
        return sum(a * abs(c) + b / 2 * c * c for a, b, c in zip(self.l1, self.l2, coef, strict=True))

    def _value(self, coef):
        explained = sum(c * (self.cross[i] - self._row(i, coef) / 2) for i, c in enumerate(coef))
        return self.square / 2 - explained + self._penalty(coef)

    def _row(self, i, coef):
        return sum(g * c for g, c in zip(self.gram[i], coef, strict=True))

    def minimum(self):
        """The objective and the coefficients there."""
        choices = []
        for low, high, l1 in zip(self.lower, self.upper, self.l1, strict=True):
            fixed = {bound for bound in (low, high) if bound is not None}
            if (low is None or low < 0) and (high is None or high > 0) and l1:
                fixed.add(Fraction(0))
            choices.append([("fixed", value) for value in fixed] + [("free", 1), ("free", -1)])
        for pieces in product(*choices):
            coef = self._stationary(pieces)
            if coef is not None and self._is_optimal(coef):
                return self._value(coef), coef
        raise AssertionError("columns depend on each other")

    def _stationary(self, pieces):
        coef = [value if kind == "fixed" else Fraction(0) for kind, value in pieces]
        free = [j for j, (kind, _) in enumerate(pieces) if kind == "free"]
        system = [
            [self.gram[i][j] + (self.l2[i] if i == j else 0) for j in free]
            + [self.cross[i] - self._row(i, coef) - pieces[i][1] * self.l1[i]]
            for i in free
        ]
        solution = _solved(system)
        if solution is None:
            return None
        for j, value in zip(free, solution, strict=True):
            if value * pieces[j][1] < 0:
                return None
            coef[j] = value
        return coef

    def _is_optimal(self, coef):
        for j, c in enumerate(coef):
            low, high = self.lower[j], self.upper[j]
            if (low is not None and c < low) or (high is not None and c > high):
                return False
            pull = self.cross[j] - self._row(j, coef) - self.l2[j] * c
            up = pull - (self.l1[j] if c >= 0 else -self.l1[j])
            down = (self.l1[j] if c > 0 else -self.l1[j]) - pull
            if (up > 0 and c != high) or (down > 0 and c != low):
                return False
        return True


def _solved(system):
    """The solution by Gauss's elimination; None where there is not one."""
    size = len(system)
    rows = [list(row) for row in system]
    for k in range(size):
        pivot = next((i for i in range(k, size) if rows[i][k]), None)
        if pivot is None:
            return None
        rows[k], rows[pivot] = rows[pivot], rows[k]
        for i in range(size):
            if i != k and rows[i][k]:
                factor = rows[i][k] / rows[k][k]
                rows[i] = [a - factor * b for a, b in zip(rows[i], rows[k], strict=True)]
    return [row[-1] / row[k] for k, row in enumerate(rows)]
