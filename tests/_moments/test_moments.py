"""Moments add up: any split, order or repetition of the rows gives those of the whole."""

import itertools
import math
from fractions import Fraction
from math import frexp

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse

from torchlinreg._data.rows import as_row_blocks
from torchlinreg._linalg import double_double as dd
from torchlinreg._linalg.gram import NARROW, PANELS, SMALL_ROWS, UpperGram, _Buffer
from torchlinreg._moments.exact import ExactMoments, ExactMomentsOf
from torchlinreg._moments.moments import Frame, Moments, MomentsOf, choose_frame
from torchlinreg._objective.penalty import ridge
from torchlinreg._objective.problem import Problem
from torchlinreg._solvers.least_squares.normal_equations import RANDOM_SIGNS

EPS = 2.0**-53
# Full-length numbers of moderate size, zeros and small integers among them.
NUMBERS = st.one_of(
    st.floats(-100, 100, allow_subnormal=False, width=64).filter(lambda v: v == 0 or abs(v) > 1e-6),
    st.integers(-3, 3).map(float),
)
WEIGHTS = st.one_of(st.floats(1e-3, 1e3), st.integers(0, 4).map(float))
KINDS = {"float64": MomentsOf, "exact": ExactMomentsOf}


@st.composite
def weighted_rows(draw, min_rows=2):
    """X, y (1 or 2 targets) and positive or zero weights, or None."""
    n_rows = draw(st.integers(min_rows, 12))
    n_features, n_targets = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    X = draw(arrays(np.float64, (n_rows, n_features), elements=NUMBERS))
    y = draw(arrays(np.float64, (n_rows, n_targets), elements=NUMBERS))
    weight = draw(st.none() | arrays(np.float64, n_rows, elements=WEIGHTS))
    assume(weight is None or weight.sum() > 0)
    return X, y, weight


def shifts(n_columns):
    return st.lists(st.integers(-50, 50), min_size=n_columns, max_size=n_columns)


def make_frame(shift, scale=None):
    columns = torch.tensor([0.0, *map(float, shift)], dtype=torch.float64)
    scale = None if scale is None else torch.tensor([1.0, *scale], dtype=torch.float64)
    return Frame(columns, scale)


def moments_of(kind, X, y, weight, frame):
    """Moments in one block; zero weights are allowed to be all there is."""
    block = as_row_blocks(X, y).rows(0, len(X))
    if weight is not None:
        block = block._replace(weight=torch.from_numpy(weight))
    return KINDS[kind](frame)(block)


def exact_moments(X, y, weight, frame):
    """Second moments of the shifted and scaled columns in rational arithmetic."""
    shift = [Fraction(value) for value in frame.shift.tolist()]
    scale = [Fraction(1)] * len(shift)
    if frame.scale is not None:
        scale = [Fraction(value) for value in frame.scale.tolist()]
    rows = np.column_stack([np.ones(len(X)), X, y]).tolist()
    columns = [[(Fraction(row[j]) - shift[j]) * scale[j] for row in rows] for j in range(len(shift))]
    weights = [Fraction(w) for w in (np.ones(len(X)) if weight is None else weight).tolist()]
    return [
        [sum((w * a * b for w, a, b in zip(weights, one, two, strict=True)), Fraction(0)) for two in columns]
        for one in columns
    ]


def as_fractions(moments):
    """The upper triangle, which is what `Moments` promise."""
    if isinstance(moments, Moments):
        high, low = moments.raw, torch.zeros_like(moments.raw)
    else:
        high, low = moments.high, moments.low
    return [
        [Fraction(first) + Fraction(rest) for first, rest in zip(*pair, strict=True)]
        for pair in zip(high.tolist(), low.tolist(), strict=True)
    ]


def centred(moments):
    """Second moments about the means; the upper triangle without its first row."""
    first, *others = moments
    return [
        [row[j] - first[i] * first[j] / first[0] if j >= i else None for j in range(1, len(row))]
        for i, row in enumerate(others, start=1)
    ]


def relative_error(found, expected):
    """Largest error over the upper triangle, relative to the columns' norms."""
    norms = [float(expected[j][j]) ** 0.5 for j in range(len(expected))]
    errors = [
        float(abs(found[i][j] - expected[i][j])) / (norms[i] * norms[j] or 1.0)
        for i in range(len(expected))
        for j in range(i, len(expected))
    ]
    return max(errors)


def tolerance(kind):
    return 1e-28 if kind == "exact" else 1e-13


def assert_same(kind, one, other, scale_of):
    """Equal up to the rounding that the columns' norms allow."""
    found, expected, norms = as_fractions(one), as_fractions(other), as_fractions(scale_of)
    difference = [
        [a - b + c for a, b, c in zip(*rows, strict=True)]
        for rows in zip(found, expected, norms, strict=True)
    ]
    assert relative_error(difference, norms) <= tolerance(kind)
    assert one.n_samples == other.n_samples


@pytest.mark.parametrize("kind", KINDS)
class TestLaws:
    @given(rows=weighted_rows(), data=st.data())
    def test_agree_with_fractions(self, kind, rows, data):
        X, y, weight = rows
        n_columns = X.shape[1] + y.shape[1]
        powers = st.lists(st.sampled_from([0.25, 1.0, 8.0]), min_size=n_columns, max_size=n_columns)
        frame = make_frame(data.draw(shifts(n_columns)), data.draw(st.none() | powers))
        found = moments_of(kind, X, y, weight, frame)
        expected = exact_moments(X, y, weight, frame)
        assert relative_error(as_fractions(found), expected) <= tolerance(kind)
        assert found.n_samples == len(X)

    @given(rows=weighted_rows(min_rows=3), data=st.data())
    def test_any_split_merges_to_the_whole(self, kind, rows, data):
        X, y, weight = rows
        frame = make_frame(data.draw(shifts(X.shape[1] + y.shape[1])))
        cuts = sorted(data.draw(st.sets(st.integers(1, len(X) - 1))))
        whole = moments_of(kind, X, y, weight, frame)
        parts = [
            moments_of(kind, X[a:b], y[a:b], None if weight is None else weight[a:b], frame)
            for a, b in zip([0, *cuts], [*cuts, len(X)], strict=True)
        ]
        merge = type(whole).merge
        forwards, backwards = parts[0], parts[-1]
        for part in parts[1:]:
            forwards = merge(forwards, part)
        for part in parts[-2::-1]:
            backwards = merge(part, backwards)
        assert_same(kind, forwards, whole, whole)
        assert_same(kind, backwards, whole, whole)

    @given(rows=weighted_rows(), data=st.data())
    def test_order_of_rows_does_not_matter(self, kind, rows, data):
        X, y, weight = rows
        frame = make_frame(data.draw(shifts(X.shape[1] + y.shape[1])))
        order = data.draw(st.permutations(range(len(X))))
        shuffled = X[order], y[order], None if weight is None else weight[order]
        whole = moments_of(kind, X, y, weight, frame)
        assert_same(kind, moments_of(kind, *shuffled, frame), whole, whole)

    @given(rows=weighted_rows(), data=st.data())
    def test_weight_is_repetition(self, kind, rows, data):
        X, y, _ = rows
        times = np.array(data.draw(st.lists(st.integers(0, 5), min_size=len(X), max_size=len(X))))
        assume(times.any())
        frame = make_frame(data.draw(shifts(X.shape[1] + y.shape[1])))
        weighted = moments_of(kind, X, y, times.astype(float), frame)
        repeated = moments_of(kind, X.repeat(times, axis=0), y.repeat(times, axis=0), None, frame)
        found, expected = as_fractions(weighted), as_fractions(repeated)
        assert relative_error(found, expected) <= tolerance(kind)

    @given(rows=weighted_rows(), factor=st.sampled_from([1e-200, 1e-9, 0.1, 3.0, 1e12, 1e200]))
    def test_weights_scale_the_moments(self, kind, rows, factor):
        X, y, weight = rows
        weight = np.ones(len(X)) if weight is None else weight
        frame = make_frame([1] * (X.shape[1] + y.shape[1]))
        found = as_fractions(moments_of(kind, X, y, weight * factor, frame))
        expected = exact_moments(X, y, weight * factor, frame)
        assert relative_error(found, expected) <= tolerance(kind)


@given(rows=weighted_rows(), data=st.data())
def test_moments_of_different_frames_merge(rows, data):
    """The shift of the first counts; the loss is that of the distance of the two shifts."""
    X, y, weight = rows
    n_columns = X.shape[1] + y.shape[1]
    one, other = (
        make_frame(data.draw(shifts(n_columns))),
        make_frame(data.draw(shifts(n_columns)), [0.5] * n_columns),
    )
    cut = data.draw(st.integers(1, len(X) - 1))
    weights = (None, None) if weight is None else (weight[:cut], weight[cut:])
    a = moments_of("float64", X[:cut], y[:cut], weights[0], one)
    b = moments_of("float64", X[cut:], y[cut:], weights[1], other)
    merged = Moments.merge(a, b)
    assert merged.frame is one
    expected = exact_moments(X, y, weight, one)
    total = sum(weight) if weight is not None else len(X)
    found = as_fractions(merged)
    for i, row in enumerate(expected):
        for j in range(i, len(row)):
            assert abs(found[i][j] - row[j]) <= 1e-11 * total * 200**2


def test_moments_into_another_frame_and_back():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((50, 3)), rng.standard_normal((50, 1))
    near, far = make_frame([0] * 4), make_frame([3, -4, 0, 1], [2.0, 1.0, 0.5, 1.0])
    here = moments_of("float64", X, y, None, near)
    there = here.in_frame(far)
    direct = moments_of("float64", X, y, None, far)
    assert relative_error(as_fractions(there), exact_moments(X, y, None, far)) < 1e-13
    assert_same("float64", there.in_frame(near), here, here)
    assert there.frame is direct.frame is far


def test_float64_moments_become_exact_ones():
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((50, 3)), rng.standard_normal((50, 1))
    plain = moments_of("float64", X, y, None, make_frame([0] * 4))
    exact = ExactMoments.from_moments(plain)
    assert torch.equal(exact.high, exact.high.T)
    assert torch.equal(exact.high.triu(), plain.raw.triu())
    assert exact.n_samples == 50
    assert exact.unit_roundoff > 2.0**-60


@pytest.mark.every(3)
@pytest.mark.parametrize("n_rows", [1, 1023, 1024, 1025, 3000])
@pytest.mark.parametrize("weighted", [False, True])
def test_exact_moments_of_many_rows(n_rows, weighted):
    """Longer than the exact inner products, with numbers of full length and ill-conditioned sums."""
    rng = np.random.default_rng(1)
    X = rng.standard_normal((n_rows, 2)) * [1.0, 1e6] + [0.0, 1e9]
    y = X[:, :1] / 3 + 1e-3 * rng.standard_normal((n_rows, 1))
    weight = rng.uniform(0, 10, n_rows) ** 3 if weighted else None
    frame = make_frame([0, 10**9, 1])
    found = moments_of("exact", X, y, weight, frame)
    assert relative_error(as_fractions(found), exact_moments(X, y, weight, frame)) <= 1e-28


@pytest.mark.parametrize("weighted", [pytest.param(False, marks=pytest.mark.exhaustive), True])
def test_exact_moments_of_the_longest_slices(weighted):
    """All rows alike, with slices as large as they can be: their products use up every bit there is."""
    rng = np.random.default_rng(1)
    X = 1 - 2.0**-21 - 2.0**-43 * rng.integers(0, 9, (9000, 2))
    weight = np.full(9000, 2 - 2.0**-21) if weighted else None
    frame = make_frame([0, 0, 0])
    found = moments_of("exact", X, X[:, :1], weight, frame)
    assert relative_error(as_fractions(found), exact_moments(X, X[:, :1], weight, frame)) <= 1e-28


@pytest.mark.parametrize("magnitude", [1e-150, 1e-100, 1e-30, 1e30, 1e100, 1e150])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_at_any_magnitude(kind, magnitude):
    """`choose_frame` finds powers of two that keep squares in range."""
    rng = np.random.default_rng(2)
    X = rng.standard_normal((40, 2)) * [magnitude, 1.0]
    y = rng.standard_normal((40, 1)) / magnitude
    frame = choose_frame(as_row_blocks(X, y), fit_intercept=True)
    found = moments_of(kind, X, y, None, frame)
    assert relative_error(as_fractions(found), exact_moments(X, y, None, frame)) <= tolerance(kind)
    if frame.scale is not None:
        assert all(frexp(value)[0] == 0.5 for value in frame.scale.tolist())


@pytest.mark.parametrize("offset", [1e3, 1e6, 1e9, -1e9])
@pytest.mark.parametrize("kind", KINDS)
def test_offset_costs_nothing(kind, offset):
    """Centred moments of shifted columns are as good as those of the same columns at the origin."""
    rng = np.random.default_rng(3)
    X, y = offset + rng.standard_normal((300, 2)), offset + rng.standard_normal((300, 1))
    frame = choose_frame(as_row_blocks(X, y), fit_intercept=True)
    found = centred(as_fractions(moments_of(kind, X, y, None, frame)))
    assert relative_error(found, centred(exact_moments(X, y, None, frame))) <= tolerance(kind)


@pytest.mark.parametrize("row", [3, 4])  # of which the deviation is computed without and with
@pytest.mark.parametrize("offset", [0.0, 0.3, 3.0, 10.0, 100.0, 1e3, 1e6])
def test_outliers_in_the_first_rows_leave_the_shift_near_the_mean(offset, row):
    """So that squares about the shift are no more than a few digits larger than those about the mean."""
    rng = np.random.default_rng(5)
    X = offset + rng.standard_normal((200, 20))
    shift = choose_frame(as_row_blocks(X, X[:, :1]), fit_intercept=True).shift.numpy()[1:21]
    assert np.abs(shift - offset).max() <= 0.6
    X[row] += 1e3
    shift = choose_frame(as_row_blocks(X, X[:, :1]), fit_intercept=True).shift.numpy()[1:21]
    assert np.abs(shift - offset).max() <= 16


def test_centred_columns_are_not_shifted():
    X = np.random.default_rng(6).standard_normal((300, 100))
    assert not choose_frame(as_row_blocks(X, X[:, :1]), fit_intercept=True).shift.any()


def test_constant_columns_have_exact_zeros():
    """A constant is its own shift, so that no variance is left, whatever its last digits."""
    rng = np.random.default_rng(4)
    X = np.column_stack([np.full(500, 0.1), rng.standard_normal(500)])
    blocks = as_row_blocks(X, np.full(500, 1e9 / 7))
    frame = choose_frame(blocks, fit_intercept=True)
    for kind in KINDS:
        found = as_fractions(moments_of(kind, X, np.full((500, 1), 1e9 / 7), None, frame))
        assert found[1][1] == found[0][1] == found[1][2] == 0
        assert found[3][3] == found[0][3] == 0


def test_without_intercept_nothing_is_shifted():
    X, y = np.random.default_rng(5).standard_normal((20, 2)) + 7, np.ones((20, 1))
    frame = choose_frame(as_row_blocks(X, y), fit_intercept=False)
    assert not frame.shift.any()


@given(rows=weighted_rows(), data=st.data())
def test_sparse_rows_have_the_moments_of_dense_ones(rows, data):
    X, y, weight = rows
    frame = make_frame(data.draw(shifts(X.shape[1])) + [2] * y.shape[1])
    block = as_row_blocks(X, y).rows(0, len(X))
    if weight is not None:
        block = block._replace(weight=torch.from_numpy(weight))
    found = MomentsOf(frame)(block._replace(X=None, csr=sparse.csr_array(X)))
    expected = exact_moments(X, y, weight, frame)
    assert relative_error(as_fractions(found), expected) <= 1e-13


# Widths and lengths around those where the product of the columns changes its way.
EDGES = [edge - 3 + over for edge in (NARROW, *(most for most, _ in PANELS)) for over in (0, 1)]
WIDTHS = [1, 13, 21, 22, 23, 45, 46, 69, 95, 250, *EDGES]
LENGTHS = [1, 2, SMALL_ROWS - 1, SMALL_ROWS, SMALL_ROWS + 1, 3001]


def test_no_memory_is_left_as_it_was(monkeypatch):
    """The triangle that does not count is computed with, and pickled, as well."""
    rows = np.random.default_rng(0).standard_normal((SMALL_ROWS, 520))
    monkeypatch.setattr(torch, "empty", lambda *size, **options: torch.full(*size, np.nan, **options))
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda self, size: self.new_full(size, np.nan))
    raw = Problem(as_row_blocks(rows, rows[:, 0], None), ridge(0.0, 520)).moments.raw
    assert bool(raw.isfinite().all())


@pytest.mark.parametrize("fit_intercept", [True, False])
def test_standardised_columns(fit_intercept):
    rng = np.random.default_rng(0)
    X, y = (
        rng.standard_normal((50, 4)) * [1e-160, 1.0, 1e3, 0.0] + 5 * np.array([0, 1, 1e3, 1]),
        np.ones((50, 2)),
    )
    y[:, 0] = X[:, 1] + rng.standard_normal(50)
    weight = rng.integers(1, 4, 50).astype(float)
    found = Problem(as_row_blocks(X, y, weight), ridge(0.0, 4), fit_intercept).standardised
    mean = np.average(X, axis=0, weights=weight) * fit_intercept
    residual = np.column_stack([X - mean, y - np.average(y, axis=0, weights=weight) * fit_intercept])
    unit = np.abs(residual).max(0)
    unit[unit == 0] = 1.0
    spread = unit * np.sqrt(np.average((residual / unit) ** 2, axis=0, weights=weight))
    constant = spread < 1e-12 * np.abs(np.column_stack([X, y])).max(0)
    np.testing.assert_array_equal(constant, [False, False, False, fit_intercept, False, fit_intercept])
    np.testing.assert_array_equal(np.append(found.spread, found.target_spread) == 0, constant)
    np.testing.assert_allclose(found.spread[:3], spread[:3], rtol=1e-12)
    np.testing.assert_allclose(found.target_spread[0], spread[4], rtol=1e-12)
    np.testing.assert_allclose(found.center[:3], mean[:3], rtol=1e-12, atol=1e-175)
    standard = np.where(constant, 0.0, residual / np.where(constant, 1.0, spread))
    products = standard.T @ (weight[:, None] * standard) / weight.sum()
    np.testing.assert_allclose(found.gram, np.where(np.eye(4) > 0, 1.0, products[:4, :4]), atol=1e-12)
    np.testing.assert_allclose(found.cross, products[:4, 4:] * found.target_spread, atol=1e-12)


@pytest.mark.every(5)
@pytest.mark.parametrize("small", [True, False])
@pytest.mark.parametrize("n_rows", LENGTHS)
@pytest.mark.parametrize("n_features", WIDTHS)
def test_whole_numbers_have_exact_moments(n_features, n_rows, small, monkeypatch):
    """No sum of them is rounded, in whatever order; weights are squares, whose roots are exact."""
    if not small:
        monkeypatch.setattr("torchlinreg._linalg.gram.SMALL", 0)
    rng = np.random.default_rng(n_features)
    y = rng.integers(-9, 10, (n_rows, 2)).astype(float)
    for offset, dtype, weighted in [(0, float, False), (512, float, False), (0, np.float32, True)]:
        X = offset + rng.integers(-9, 10, (n_rows, n_features)).astype(dtype)
        weight = rng.integers(0, 3, n_rows) ** 2.0 if weighted else np.ones(n_rows)
        weight[0] = 1
        moments = Problem(as_row_blocks(X, y, weight if weighted else None), ridge(0.0, n_features)).moments
        rows = np.column_stack([np.ones(n_rows), X.astype(float), y]) - moments.frame.shift.numpy()
        expected = rows.T @ (rows * weight[:, None])
        np.testing.assert_array_equal(np.triu(moments.raw.numpy()), np.triu(expected))
        assert moments.n_samples == n_rows


@pytest.mark.every(5)
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("n_threads", [1, 2, 16])
@pytest.mark.parametrize("n_columns", [3, 70, 300])
def test_products_of_several_calls(n_columns, n_threads, shared, monkeypatch):
    """Of more rows and fewer, whole and in parts; the column of ones is there in each call."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    monkeypatch.setattr("torchlinreg._linalg.gram.SMALL", 0)
    monkeypatch.setattr("torchlinreg._linalg.gram.LONGEST_SUM", 300)
    monkeypatch.setattr("torchlinreg._linalg.gram.SHARE_BYTES", 2**20)
    if shared:
        monkeypatch.setattr("torchlinreg._linalg.gram.SUMS_BYTES", 0)
    rng = np.random.default_rng(n_columns)
    gram = UpperGram(n_columns, torch.device("cpu"), has_ones=True)
    scaled = UpperGram(n_columns, torch.device("cpu"))
    for n_rows in (5000, 3001, 5000, 1, 17, 30_000, 4999, 0):
        rows = torch.from_numpy(rng.integers(-9, 10, (n_rows, n_columns)).astype(float))
        factor = torch.from_numpy(rng.integers(0, 3, n_rows).astype(float))
        found = scaled.of_scaled(rows, factor)
        times = rows * factor[:, None]
        torch.testing.assert_close(found.triu(), (times.T @ times).triu(), rtol=0, atol=0)
        rows[:, 0] = 1
        found = gram(n_rows, lambda part, out, rows=rows: out[:, 1:].copy_(rows[part, 1:]))
        torch.testing.assert_close(found.triu(), (rows.T @ rows).triu(), rtol=0, atol=0)


def test_an_interrupted_product_leaves_nothing_behind():
    gram = UpperGram(2, torch.device("cpu"))

    def fail(part, out):
        out[:] = 1
        if part.start > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        gram(2**21, fail)
    assert gram(2**21, lambda part, out: out.fill_(1))[0, 1] == 2**21


def indicators(rng, shape):
    """Standardised, so that sums hold the same few products again and again, rounded alike each time."""
    rows = (rng.random(shape) < 0.3).astype(np.float64)
    return (rows - rows.mean(0)) / rows.std(0)


ROWS = {
    "positive": lambda rng, shape: rng.random(shape),
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "trending": lambda rng, shape: np.cumsum(rng.standard_normal(shape), axis=0),
    "outliers": lambda rng, shape: rng.standard_cauchy(shape),
    "indicators": indicators,
    "sorted indicators": lambda rng, shape: np.sort(indicators(rng, shape), axis=0),
    "constant": lambda rng, shape: np.broadcast_to(0.5 + rng.random(shape[1]), shape),
    "nearly constant": lambda rng, shape: (0.5 + rng.random(shape[1])) * (1 + 1e-14 * rng.random(shape)),
    "few values": lambda rng, shape: rng.random(200)[rng.integers(0, 200, shape)],
}


def exact_product(a, b):
    """The sum of products, rounded once."""
    return math.fsum(np.concatenate(dd.two_product(a, b)))


@pytest.mark.parametrize("shape", [(25, 2), (300, 5), (1020, 10), (10**5, 2), (2 * 10**5, 10), (5000, 300)])
@pytest.mark.parametrize("kind", ROWS)
def test_rounding_errors_of_products_are_within_the_bound(kind, shape):
    rows = np.ascontiguousarray(ROWS[kind](np.random.default_rng(0), shape))
    found, roundoff = UpperGram(shape[1], torch.device("cpu")).with_roundoff(
        shape[0], lambda part, out: out.copy_(torch.from_numpy(rows[part]))
    )
    for i, j in [(0, 0), (0, 1), (1, 1), (0, shape[1] - 1)]:
        error = abs(float(found[i, j]) - exact_product(rows[:, i], rows[:, j]))
        assert error <= roundoff * np.linalg.norm(rows[:, i]) * np.linalg.norm(rows[:, j])
    if kind in ("positive", "normal"):
        assert roundoff < 1.3e-15  # or fits that need no refinement would be refined


@pytest.mark.every(4)
@pytest.mark.parametrize("place", [0, 30_000])
@pytest.mark.parametrize("shape", [(60_000, 30), (40_000, 300), (40_000, 600)])
def test_one_large_row_leaves_larger_errors(shape, place):
    """All rows of its stack, and all buffers after it, are added to nearly the whole sum."""
    rows = np.random.default_rng(0).random(shape)
    rows[place] = 1e4
    found, roundoff = UpperGram(shape[1], torch.device("cpu")).with_roundoff(
        shape[0], lambda part, out: out.copy_(torch.from_numpy(rows[part]))
    )
    for j in range(0, shape[1], shape[1] // 15):
        exact = exact_product(rows[:, j], rows[:, j])
        assert abs(float(found[j, j]) - exact) <= roundoff * exact
    assert roundoff > 2e-15


@pytest.mark.every(3)
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("n_columns", [2, 10, 30, 80])
def test_rounding_errors_of_many_positive_products_stay_small(n_columns, n_threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    rows = np.random.default_rng(0).random((min(10**6, 2**23 // n_columns), n_columns))
    found, roundoff = UpperGram(n_columns, torch.device("cpu")).with_roundoff(
        len(rows), lambda part, out: out.copy_(torch.from_numpy(rows[part]))
    )
    for i, j in [(0, 0), (0, 1), (1, 1)]:
        error = abs(float(found[i, j]) - exact_product(rows[:, i], rows[:, j]))
        assert error <= roundoff * np.linalg.norm(rows[:, i]) * np.linalg.norm(rows[:, j])
    assert roundoff < 1.3e-15


@pytest.mark.parametrize("kind", ROWS)
def test_rounding_errors_of_sparse_moments_are_within_the_bound(kind):
    rng = np.random.default_rng(0)
    dense = ROWS[kind](rng, (20_000, 40)) * (rng.random((20_000, 40)) < 0.02)
    y, weight = ROWS[kind](rng, (20_000, 1))[:, 0], rng.random(20_000)
    blocks = as_row_blocks(sparse.csr_array(dense), y, weight)
    assert blocks.is_sparse
    moments = Problem(blocks, ridge(0.0, 40)).moments
    shift, scale = moments.frame
    assert scale is None
    root = np.sqrt(weight)
    columns = [root, root * dense[:, 0], root * dense[:, 1], root * (y - float(shift[-1]))]
    for (a, i), (b, j) in itertools.combinations_with_replacement(
        zip(columns, (0, 1, 2, 41), strict=True), 2
    ):
        error = abs(float(moments.raw[i, j]) - exact_product(a, b))
        assert error <= moments.roundoff * np.linalg.norm(a) * np.linalg.norm(b)


def test_duplicate_entries_of_sparse_rows_are_added_before_they_are_squared():
    rng = np.random.default_rng(0)
    whole = sparse.csr_array(rng.random((4000, 60)) * (rng.random((4000, 60)) < 0.01))
    halves = sparse.csr_array(
        (np.repeat(whole.data / 2, 2), np.repeat(whole.indices, 2), 2 * whole.indptr), shape=whole.shape
    )
    y = whole @ rng.random(60) + 1
    once, twice = (Problem(as_row_blocks(X, y), ridge(0.0, 60)) for X in (whole, halves))
    assert once.blocks.is_sparse
    assert twice.blocks.is_sparse
    assert twice.moments.roundoff < 1e-14
    np.testing.assert_allclose(twice.standardised.spread, once.standardised.spread, rtol=1e-12)


def test_extreme_sparse_columns_behind_the_first_rows_overflow_in_silence():
    rng = np.random.default_rng(0)
    dense = rng.random((4000, 60)) * (rng.random((4000, 60)) < 0.02)
    dense[300:, 0] *= 1e200
    moments = Problem(as_row_blocks(sparse.csr_array(dense), dense.sum(1)), ridge(0.0, 60)).moments
    assert moments.is_sound
    assert moments.frame.scale is not None


@pytest.mark.parametrize("unit", [1e-90, 1e-60, 1.0, 1e60])
def test_rounding_errors_of_gradients_scale_with_the_data(unit):
    rng = np.random.default_rng(0)
    X, y = np.cumsum(rng.standard_normal((5000, 3)), axis=0), np.cumsum(rng.standard_normal(5000))

    def error(unit):
        problem = Problem(as_row_blocks(X * unit, y * unit), ridge(0.0, 3))
        frame = Frame(torch.zeros(5, dtype=torch.float64), None)
        return problem.gradient(frame, np.arange(4), np.array([4]), np.zeros((4, 1)))[1]

    factor = np.array([[unit], *[[unit**2]] * 3])
    np.testing.assert_allclose(error(unit), error(1.0) * factor, rtol=0.5)


@pytest.mark.parametrize("kind", ["normal", "trending", "smooth"])
@pytest.mark.parametrize("shape", [(1000, 5), (2 * 10**5, 10), (3000, 300)])
def test_rounding_errors_of_gradients_are_within_the_bound(kind, shape):
    """Of one sum over the rows they can be 4e-15 of the norms where residuals change their sign rarely."""
    rng = np.random.default_rng(0)
    t = np.linspace(0, 1, shape[0])
    X = 2 + np.sin(np.outer(t, 1 + np.arange(shape[1]))) if kind == "smooth" else rng.random(shape)
    y = np.exp(3 * t) if kind == "smooth" else ROWS[kind](rng, (shape[0], 1))[:, 0]
    y = y - y.mean()
    problem = Problem(as_row_blocks(X, y), ridge(0.0, shape[1]))
    frame = Frame(torch.zeros(2 + shape[1], dtype=torch.float64), None)
    design, responses = np.arange(1 + shape[1]), np.array([1 + shape[1]])
    gradient, error = problem.gradient(frame, design, responses, np.zeros((1 + shape[1], 1)))
    assert error.shape == gradient.shape
    assert abs(gradient[0, 0] - math.fsum(y)) <= error[0, 0]
    for j in (0, 1, shape[1] - 1):
        off = abs(gradient[1 + j, 0] - exact_product(X[:, j], y))
        assert off <= max(error[1 + j, 0], RANDOM_SIGNS * np.linalg.norm(X[:, j]) * np.linalg.norm(y))


@pytest.mark.parametrize("n_threads", [1, 2, 16, 64])
@pytest.mark.parametrize("n_columns", [3, 12, 64, 65, 102, 300, 1002, 3000])
def test_buffers_take_a_few_mebibytes(n_columns, n_threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: n_threads)
    for n_rows in (10**4, 10**6):
        buffer = _Buffer(n_rows, n_columns, torch.device("cpu"))
        sums = sum(8 * total.numel() for total in buffer._sums)
        shared = n_threads * 4 * n_columns**2 > 2**24
        assert 8 * buffer.rows.numel() <= (64 if shared else n_threads * 2) * 2**20 * 1.15
        assert sums <= max(2**24, 8 * n_columns**2) * 1.5


# Error-free transformations, against rational arithmetic.

ANY = st.floats(-1e300, 1e300, allow_subnormal=False)
# Products of these, and their rounding errors, neither over- nor underflow.
FACTORS = st.floats(-1e120, 1e120, allow_subnormal=False).filter(lambda v: v == 0 or abs(v) > 1e-100)
LIBRARIES = [np.array, lambda values: torch.tensor(values, dtype=torch.float64)]


def exact_value(pair):
    return sum(Fraction(float(np.ravel(part)[0])) for part in pair)


@st.composite
def double_doubles(draw):
    high = draw(FACTORS)
    part = draw(st.floats(-1, 1, allow_subnormal=False).filter(lambda v: v == 0 or abs(v) > 1e-9))
    low = part * np.spacing(abs(high)) / 2
    return dd.two_sum(np.array([high]), np.array([low]))


@pytest.mark.parametrize("library", LIBRARIES, ids=["numpy", "torch"])
class TestErrorFree:
    @given(a=ANY, b=ANY)
    def test_two_sum(self, library, a, b):
        total, error = dd.two_sum(library([a]), library([b]))
        assert total[0] == a + b
        assert exact_value((total[0], error[0])) == Fraction(a) + Fraction(b)

    @given(a=FACTORS, b=FACTORS)
    def test_two_product(self, library, a, b):
        product, error = dd.two_product(library([a]), library([b]))
        assert product[0] == a * b
        assert exact_value((product[0], error[0])) == Fraction(a) * Fraction(b)

    @given(values=st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=1, max_size=5))
    def test_slices_sum_to_the_whole(self, library, values):
        high = library(values)
        parts = dd.slices(high, high * 0, 6)
        assert len(parts) == 6
        for index, value in enumerate(values):
            left = Fraction(value) - sum(Fraction(float(part[index])) for part in parts)
            assert abs(left) <= 2.0**-160

    @given(values=st.lists(st.floats(-1, 1, allow_subnormal=False), min_size=1, max_size=5), data=st.data())
    def test_slices_are_short(self, library, values, data):
        """Whole multiples, of 22 bits with sign, of a unit that falls by 22 bits from one to the next."""
        low = library([data.draw(st.floats(-1, 1)) * np.spacing(abs(v)) / 2 for v in values])
        high, low = dd.two_sum(library(values), low)
        assume(bool((abs(high) <= 1).all()))
        *parts, _ = dd.slices(high, low, 5)
        for k, part in enumerate(parts):
            units = [Fraction(float(value)) * 2 ** (22 * (k + 1) - 1) for value in part]
            assert all(value.denominator == 1 and abs(value) <= 2**21 for value in units)

    @given(values=st.lists(st.floats(0, 1e300, allow_subnormal=False), min_size=1))
    def test_slice_scale(self, library, values):
        for scale, value in zip(dd.slice_scale(library(values)), values, strict=True):
            assert frexp(float(scale))[0] == 0.5
            assert value <= scale <= 2 * value or (value == 0 and scale == 1)

    @given(values=st.lists(FACTORS, min_size=1, max_size=20))
    def test_sum_over_first_axis(self, library, values):
        column = library(values)[:, None]
        before = column + 0
        high, low = dd.sum_over_first_axis((column, column * 0))
        expected = sum(map(Fraction, values))
        size = sum(abs(Fraction(value)) for value in values)
        assert abs(exact_value((high[0], low[0])) - expected) <= size * 2.0**-100
        assert bool((column == before).all())


class TestDoubleDouble:
    @given(a=double_doubles(), b=double_doubles())
    def test_add(self, a, b):
        expected = exact_value(a) + exact_value(b)
        size = abs(exact_value(a)) + abs(exact_value(b))
        assert abs(exact_value(dd.add(a, b)) - expected) <= abs(expected) * 2.0**-102 + size * 2.0**-158
        assert exact_value(dd.add(a, dd.negative(a))) == 0

    @given(a=double_doubles(), b=double_doubles())
    def test_multiply(self, a, b):
        expected = exact_value(a) * exact_value(b)
        assert abs(exact_value(dd.multiply(a, b)) - expected) <= abs(expected) * 2.0**-100

    @given(a=double_doubles(), b=double_doubles())
    def test_divide(self, a, b):
        assume(b[0][0] != 0 and 1e-90 < abs(a[0][0]) < 1e90 and 1e-90 < abs(b[0][0]) < 1e90)
        expected = exact_value(a) / exact_value(b)
        assert abs(exact_value(dd.divide(a, b)) - expected) <= abs(expected) * 2.0**-98

    def test_matmul(self):
        rng = np.random.default_rng(0)
        a, b = rng.standard_normal((3, 40)), rng.standard_normal((40, 2))
        zero = np.zeros_like
        high, low = dd.matmul((a, zero(a) + 1e-18), (b, zero(b)))
        for i in range(3):
            for j in range(2):
                left = [Fraction(v) + Fraction(1e-18) for v in a[i].tolist()]
                expected = sum(x * Fraction(v) for x, v in zip(left, b[:, j].tolist(), strict=True))
                assert abs(exact_value((high[i, j], low[i, j])) - expected) < 1e-28

    def test_matmul_of_nothing(self):
        high, low = dd.matmul((np.ones((2, 0)), np.ones((2, 0))), (np.ones((0, 3)), np.ones((0, 3))))
        assert high.shape == low.shape == (2, 3)
        assert not high.any()

    def test_matmul_of_many(self):
        """Products of slices, to 2^-88 of the largest in a row times the largest in a column."""
        rng = np.random.default_rng(0)
        shape = (30, 1100), (1100, 12)
        a, b = (rng.standard_normal(size) for size in shape)
        a_low, b_low = (1e-17 * rng.standard_normal(size) for size in shape)
        high, low = dd.matmul((a, a_low), (b, b_low))
        for i, j in [(0, 0), (29, 11), (7, 3)]:
            left = [Fraction(x) + Fraction(e) for x, e in zip(a[i], a_low[i], strict=True)]
            right = [Fraction(x) + Fraction(e) for x, e in zip(b[:, j], b_low[:, j], strict=True)]
            expected = sum(x * y for x, y in zip(left, right, strict=True))
            limit = 2.0**-80 * np.abs(a[i]).max() * np.abs(b[:, j]).max()
            assert abs(exact_value((high[i, j], low[i, j])) - expected) < limit
