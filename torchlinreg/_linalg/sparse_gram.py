"""The product of sparse rows with themselves, in ``sum_i nnz_i^2`` steps for rows of ``nnz_i`` entries."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy import sparse

from torchlinreg._linalg import double_double as dd
from torchlinreg._linalg.gram import EPS, measured_roundoff, roundoff_of_sums

# Products of two entries that take as long as a number of a table in `_EntryLists.gram`, to write and to add.
TABLE_STEP = 0.3
# Whole numbers whose sums stay below this add up exactly.
LARGEST_EXACT = 2.0**53


class SparseProduct(NamedTuple):
    """A Gram matrix and how far rounding may have moved it."""

    gram: np.ndarray  # shape: (n_columns, n_columns)
    roundoff: float  # of an entry, relative to the norms of its two columns


def sparse_gram(X: sparse.csr_array) -> SparseProduct:
    """``X.T @ X`` of float64 rows as a dense matrix, with its rounding error."""
    lists = _EntryLists.of(X)
    gram = (X.T @ X).toarray() if lists is None else lists.gram()
    return SparseProduct(gram, _roundoff(X, gram.diagonal()))


class _EntryLists(NamedTuple):
    """Rows of about equally many entries, as lists: the first entries of all rows, the second (ELLPACK).

    Shorter rows end with entries of 0. A product is formed pair by pair of lists, by counting, which pays for
    one-hot columns, where each list is of one group and its tables are small.
    """

    columns: np.ndarray  # shape: (longest, n_rows)
    values: np.ndarray  # shape: (longest, n_rows)
    n_columns: int

    @staticmethod
    def of(X: sparse.csr_array) -> _EntryLists | None:
        """Lists of these rows, or None where a product of sparse matrices takes less time."""
        n_stored = np.diff(X.indptr)
        longest = int(n_stored.max(initial=0))
        n_pairs = longest * (longest - 1) / 2
        work = float(n_stored @ n_stored.astype(np.float64))
        if not n_pairs or n_pairs * len(n_stored) > work or not X.has_canonical_format:
            return None
        if (n_stored == longest).all():
            columns, values = (part.reshape(-1, longest).T for part in (X.indices, X.data))
            lists = _EntryLists(np.ascontiguousarray(columns, np.intp), values.copy(), X.shape[1])
        else:
            lists = _EntryLists.padded(X, n_stored, longest)
        tables = np.ptp(lists.columns, axis=1) * np.arange(longest)[::-1]
        n_written = float(tables.sum()) * X.shape[1]
        return lists if n_pairs * len(n_stored) + TABLE_STEP * n_written <= work else None

    @staticmethod
    def padded(X: sparse.csr_array, n_stored: np.ndarray, longest: int) -> _EntryLists:
        """Lists of rows of different lengths."""
        row = np.repeat(np.arange(len(n_stored)), n_stored)
        place = np.arange(len(row)) - X.indptr[row]
        columns = np.zeros((longest, len(n_stored)), dtype=np.intp)
        values = np.zeros((longest, len(n_stored)))
        columns[place, row] = X.indices
        values[place, row] = X.data
        return _EntryLists(columns, values, X.shape[1])

    def gram(self) -> np.ndarray:
        """The product of the rows with themselves."""
        n = self.n_columns
        product = np.zeros((n, n))
        for a, (columns, values) in enumerate(zip(self.columns[:-1], self.values[:-1], strict=True)):
            first, last = columns.min(), columns.max()
            cells = (columns - first) * n
            size = (last + 1 - first) * n
            for others, factor in zip(self.columns[a + 1 :], self.values[a + 1 :], strict=True):
                table = np.bincount(cells + others, values * factor, minlength=size)
                product[first : last + 1] += table.reshape(-1, n)
        product += product.T
        product.flat[:: n + 1] = np.bincount(self.columns.ravel(), self.values.ravel() ** 2, minlength=n)
        return product


def _roundoff(X: sparse.csr_array, squares: np.ndarray) -> float:
    """Rounding error of products of columns, which are summed one stored entry after another."""
    if _add_up_exactly(X.data):
        return EPS
    longest = max(1, int(np.bincount(X.indices).max(initial=0)))
    expected = roundoff_of_sums(longest, longest, 1)
    return max(expected, measured_roundoff(squares, _accurate_squares(X, squares), expected))


def _add_up_exactly(values: np.ndarray) -> bool:
    """Whether these are whole numbers whose squares, all together, are exact in float64."""
    return bool((np.rint(values[:1]) == values[:1]).all()) and bool(
        (np.rint(values) == values).all() and values @ values < LARGEST_EXACT
    )


def _accurate_squares(X: sparse.csr_array, rough: np.ndarray) -> np.ndarray:
    """Sums of squares to about one rounding, given rough ones; shape: (n_columns,).

    Each square is cut at the last bit of a number as large as its column's sum: leading parts add up exactly.
    """
    if not X.has_canonical_format:
        X = X.copy()
        X.sum_duplicates()  # as the product does
    cut = dd.slice_scale(rough)[X.indices]
    squares = X.data**2
    leading = (squares + cut) - cut
    n_columns = X.shape[1]
    rest = np.bincount(X.indices, squares - leading, minlength=n_columns)
    return np.bincount(X.indices, leading, minlength=n_columns) + rest
