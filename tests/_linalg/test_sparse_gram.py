"""Products of sparse rows with themselves, and their rounding errors."""

from fractions import Fraction

import numpy as np
import pytest
from scipy import sparse

from torchlinreg._linalg.gram import EPS
from torchlinreg._linalg.sparse_gram import _EntryLists, sparse_gram


def one_hot(n_rows=300, n_groups=4, n_levels=5, seed=0):
    rng = np.random.default_rng(seed)
    columns = (rng.integers(0, n_levels, (n_rows, n_groups)) + n_levels * np.arange(n_groups)).ravel()
    ends = np.arange(0, n_rows * n_groups + 1, n_groups)
    return sparse.csr_array((np.ones(len(columns)), columns, ends), shape=(n_rows, n_groups * n_levels))


def exact_gram(X):
    rows = [[Fraction(value) for value in row] for row in X.toarray().tolist()]
    columns = list(zip(*rows, strict=True))
    return [[sum(a * b for a, b in zip(c, d, strict=True)) for d in columns] for c in columns]


RNG = np.random.default_rng(0)
CASES = {
    "one-hot": (one_hot(), True),
    "one-hot of floats": (one_hot().multiply(np.linspace(0.1, 3.7, 20)).tocsr(), True),
    "first levels dropped": (one_hot()[:, np.arange(20) % 5 != 0], True),
    "no entries": (sparse.csr_array((7, 3)), False),
    "a single entry a row": (sparse.csr_array(np.eye(6)), False),
    "one long row": (sparse.csr_array(np.vstack([np.arange(40.0), np.eye(40)[:30]])), False),
    "at random": (
        sparse.random_array((80, 60), density=0.1, format="csr", rng=np.random.default_rng(0)),
        False,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_products_are_within_their_rounding_error_of_the_exact_ones(name):
    X, in_lists = CASES[name]
    assert (_EntryLists.of(X) is not None) == in_lists
    gram, roundoff = sparse_gram(X)
    exact = np.array(exact_gram(X))
    norm = np.sqrt(exact.diagonal().astype(float))
    error = np.array([[Fraction(value) for value in row] for row in gram.tolist()]) - exact
    assert (np.abs(error.astype(float)) <= roundoff * np.outer(norm, norm)).all()


def test_entries_that_are_stored_twice_add_up():
    X = one_hot()
    doubled = sparse.csr_array((np.repeat(X.data, 2), np.repeat(X.indices, 2), 2 * X.indptr), shape=X.shape)
    before = doubled.copy()
    np.testing.assert_array_equal(sparse_gram(doubled).gram, 4 * (X.T @ X).toarray())
    np.testing.assert_array_equal(doubled.data, before.data)  # the user's entries stay


def test_whole_numbers_have_exact_products():
    X = one_hot() * 3.0
    assert sparse_gram(X).roundoff == EPS
    assert sparse_gram(X / 30).roundoff > EPS


def test_roundings_that_do_not_cancel_are_measured():
    """0.1 is added 20,000 times: sums of its square drift by far more than independent roundings do."""
    X = sparse.csr_array(np.full((20_000, 1), 0.1))
    gram, roundoff = sparse_gram(X)
    drift = abs(float(Fraction(gram[0, 0]) / (20_000 * Fraction(0.1) ** 2) - 1))
    assert 20 * EPS < drift <= roundoff
