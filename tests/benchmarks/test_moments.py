"""Streaming moments against numpy, scipy and sums of fifty digits; what is counted, left out and kept."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from benchmarks import moments
from benchmarks.moments import BlockMoments, Directions, GradientMoments, Groups, Moments, Tail

SIZES = {"value": 1, "theta": 2, "phi": 3}
NO_CENTRES = dict.fromkeys(SIZES)


def in_parts(rows: torch.Tensor, sizes: list[int]) -> list[Moments]:
    return [Moments.of(part) for part in rows.split(sizes)]


def left_to_right(parts: list[Moments]) -> Moments:
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    return merged


def right_to_left(parts: list[Moments]) -> Moments:
    merged = parts[-1]
    for part in reversed(parts[:-1]):
        merged = merged.merge(part)
    return merged


def as_a_tree(parts: list[Moments]) -> Moments:
    while len(parts) > 1:
        pairs = [parts[i : i + 2] for i in range(0, len(parts), 2)]
        parts = [pair[0].merge(pair[1]) if len(pair) == 2 else pair[0] for pair in pairs]
    return parts[0]


GROUPINGS = [left_to_right, right_to_left, as_a_tree]


def skewed_rows(count: int, seed: int = 0) -> torch.Tensor:
    """Three columns of skewness 0, 2 and -2 on different scales."""
    rng = np.random.default_rng(seed)
    columns = [rng.standard_normal(count), 1e-3 * rng.exponential(size=count), -1e4 * rng.exponential(size=count) + 7]
    return torch.tensor(np.stack(columns, 1))


@pytest.mark.parametrize("grouping", GROUPINGS)
@pytest.mark.parametrize("sizes", [[1000], [1, 999], [1] * 10 + [990], [500, 499, 1], [7, 300, 11, 600, 82]])
def test_any_grouping_gives_the_moments_of_the_whole(grouping, sizes):
    rows = skewed_rows(1000)
    merged, whole = grouping(in_parts(rows, sizes)), rows.numpy()
    assert merged.count == 1000
    np.testing.assert_allclose(merged.mean, whole.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(merged.variance, whole.var(0, ddof=1), rtol=1e-12)
    np.testing.assert_allclose(merged.skewness, stats.skew(whole), rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(merged.kurtosis, stats.kurtosis(whole, fisher=False), rtol=1e-11)


@pytest.mark.parametrize("grouping", GROUPINGS)
def test_a_large_offset_costs_no_digits_of_the_spread(grouping):
    column = 1e8 + torch.randn(600, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    merged = grouping(in_parts(column, [100, 1, 250, 249]))
    with mpmath.workdps(50):
        values = [mpmath.mpf(x) for x in column[:, 0].tolist()]
        mean = mpmath.fsum(values) / 600
        m2, m3, m4 = (mpmath.fsum((x - mean) ** p for x in values) for p in (2, 3, 4))
        truth = mean, m2 / 599, mpmath.sqrt(600) * m3 / m2 ** mpmath.mpf("1.5"), 600 * m4 / m2**2
    assert float(mean) == pytest.approx(math.fsum(column[:, 0].tolist()) / 600, rel=1e-15)
    found = merged.mean, merged.variance, merged.skewness, merged.kurtosis
    # One ulp of the mean is 1.5e-8 standard deviations; the naive formula E x^2 - (E x)^2 would lose all of the variance.
    for ours, exact, tolerance in zip(found, truth, (3e-8, 3e-8, 3e-7, 3e-7), strict=True):
        assert abs(float(ours[0]) - float(exact)) < tolerance


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data())
def test_merging_is_exact_up_to_rounding_for_all_data(data):
    number = st.floats(-1e6, 1e6, allow_subnormal=False)
    values = data.draw(st.lists(number, min_size=2, max_size=40))
    cuts = data.draw(st.sets(st.integers(1, len(values) - 1), max_size=6))
    edges = [0, *sorted(cuts), len(values)]
    column = torch.tensor(values, dtype=torch.float64)[:, None]
    parts = in_parts(column, [b - a for a, b in itertools.pairwise(edges)])
    merged = data.draw(st.sampled_from(GROUPINGS))(parts)
    x = column.numpy()[:, 0]
    size, rounding = max(np.ptp(x), 1e-300), 1e-13 * max(np.abs(x).max(), 1e-300)
    assert float(merged.mean[0]) == pytest.approx(math.fsum(values) / len(values), abs=10 * rounding)
    for power, ours in ((2, merged.m2), (3, merged.m3), (4, merged.m4)):
        sums = math.fsum((x - x.mean()) ** power)
        # Roundoff in the mean, of the size of the numbers, enters each of the n terms; powers may be too small for all digits.
        slack = len(x) * power * (1e-12 * size + rounding) * (size + rounding) ** (power - 1) + 1e-320
        assert float(ours[0]) == pytest.approx(sums, abs=slack)


def test_second_order_alone_keeps_nothing_of_the_others():
    rows = skewed_rows(50)
    merged = Moments.of(rows[:20], order=2).merge(Moments.of(rows[20:], order=2))
    assert merged.m3.numel() == merged.m4.numel() == 0
    np.testing.assert_allclose(merged.variance, rows.numpy().var(0, ddof=1), rtol=1e-12)


def test_single_precision_rows_are_summed_in_double():
    # 2^24 + 1 has no single-precision neighbour: a sum in single precision would stand still.
    rows = torch.full((4096, 1), 1.0, dtype=torch.float32)
    merged = Moments.of(rows).merge(Moments.of(rows + 1e-3))
    assert merged.mean.dtype == torch.float64
    assert float(merged.mean[0]) == pytest.approx(1 + float(np.float32(1.001) - np.float32(1)) / 2, abs=1e-12)


def test_no_variance_no_shape():
    tenths = torch.full((10, 2), 0.1, dtype=torch.float64)
    still = Moments.of(tenths).merge(Moments.of(tenths[:3]))
    exact = Moments.of(torch.full((8, 1), 0.5, dtype=torch.float64))
    assert float(exact.variance) == float(exact.skewness) == float(exact.kurtosis) == 0
    assert still.skewness.isfinite().all() and still.kurtosis.isfinite().all()


def test_tail_keeps_the_largest_the_sum_and_the_first():
    rng = np.random.default_rng(2)
    values = rng.pareto(1.5, 30_000)
    tail = Tail()
    for part in np.array_split(values, 17):
        tail.add(torch.tensor(part))
    top = np.sort(values)[::-1]
    assert tail.count == 30_000
    assert tail.total == pytest.approx(math.fsum(values))
    np.testing.assert_array_equal(tail.largest, top[: moments.LARGEST])
    np.testing.assert_array_equal(tail.first, values[: moments.RESERVOIR])
    for fraction in (1e-3, 1e-2):
        count = int(30_000 * fraction)
        assert tail.share_of_largest(fraction) == pytest.approx(top[:count].sum() / values.sum())


def test_tail_of_zeros_has_no_share():
    tail = Tail()
    tail.add(torch.zeros(100))
    assert tail.share_of_largest() == 0.0


def test_the_share_of_a_long_run_is_of_as_many_rows_as_the_largest_stand_for(monkeypatch):
    monkeypatch.setattr(moments, "LARGEST", 10)
    monkeypatch.setattr(moments, "TAIL_ROWS", 10_000)
    tail, values = Tail(), torch.tensor(np.random.default_rng(3).pareto(1.2, 25_000))
    for part in values.split(1700):
        tail.add(part)
    kept = values[:10_000]
    assert tail.count == 10_000
    assert tail.share_of_largest() == pytest.approx(float(kept.topk(10).values.sum() / kept.sum()))


def numbers_kept(block: BlockMoments) -> int:
    streams = (block.coordinates, block.along, block.distance)
    sums = [t for m in streams if m is not None for t in (m.mean, m.m2, m.m3, m.m4)]
    return sum(t.numel() for t in (*sums, block.tail.largest, block.tail.first, block.directions.vectors))


def test_memory_is_constant_in_the_number_of_replicates():
    generator = torch.Generator().manual_seed(0)
    found = GradientMoments(SIZES, NO_CENTRES)
    sizes = []
    for batch in range(30):
        found.add(torch.randn(1024, 6, generator=generator))
        if batch >= 9:  # the reservoirs, of 8192 and 1000 rows, are full
            sizes.append([numbers_kept(block) for block in found.blocks.values()])
    assert found.blocks["phi"].coordinates.count == 30 * 1024
    assert all(size == sizes[0] for size in sizes)
    assert max(sizes[0]) < moments.RESERVOIR + moments.LARGEST + 100


def test_very_wide_blocks_keep_two_orders_per_coordinate(monkeypatch):
    monkeypatch.setattr(moments, "FOURTH_ORDER_COLUMNS", 2)
    found = GradientMoments(SIZES, NO_CENTRES)
    found.add(torch.randn(50, 6, dtype=torch.float64))
    assert found.blocks["theta"].coordinates.m4.numel() == 2
    assert found.blocks["phi"].coordinates.m4.numel() == 0
    assert found.blocks["phi"].along.m4.numel() > 0


@pytest.mark.parametrize("strip", [1, 2, 64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_blocks_are_taken_in_strip_by_strip(monkeypatch, strip, dtype):
    monkeypatch.setattr(moments, "FOURTH_ORDER_COLUMNS", 2)
    monkeypatch.setattr(moments, "STRIP", strip)
    rows = (skewed_rows(300).repeat(1, 2) + torch.tensor([0, 1e8, 0, 1e6, 0, -1e7])).to(dtype)
    given, centre = rows.clone(), torch.tensor([0.5, 2.0, -3.0], dtype=torch.float64)
    found = GradientMoments(SIZES, NO_CENTRES | {"phi": centre}).extend(rows.split([100, 1, 150, 49]))
    assert torch.equal(rows, given)
    block, whole = found.blocks["phi"], rows[:, 3:].double().numpy()
    assert block.order == 2 and block.coordinates.count == 300
    np.testing.assert_allclose(block.coordinates.mean, whole.mean(0), rtol=1e-13)
    np.testing.assert_allclose(block.coordinates.variance, whole.var(0, ddof=1), rtol=1e-9)
    distance = ((whole - centre.numpy()) ** 2).sum(1)
    np.testing.assert_allclose(block.distance.mean, distance.mean(), rtol=1e-12)
    np.testing.assert_allclose(block.distance.variance, distance.var(ddof=1), rtol=1e-6)


def test_finite_rows_whose_sum_overflows_are_kept():
    rows = torch.full((5, 6), 3e38)
    rows[3, 4] = math.nan
    found = GradientMoments(SIZES, NO_CENTRES)
    found.add(rows)
    assert found.nonfinite == 1 and found.blocks["phi"].coordinates.count == 4


def test_blocks_get_their_own_columns():
    rows = skewed_rows(400).repeat(1, 2) + torch.arange(6)
    found = GradientMoments(SIZES, NO_CENTRES).extend(rows.split(90))
    whole = rows.numpy()
    for name, columns in (("value", slice(0, 1)), ("theta", slice(1, 3)), ("phi", slice(3, 6))):
        block = found.blocks[name]
        np.testing.assert_allclose(block.coordinates.mean, whole[:, columns].mean(0), rtol=1e-12)
        np.testing.assert_allclose(block.coordinates.variance, whole[:, columns].var(0, ddof=1), rtol=1e-12)
        along = whole[:, columns] @ block.directions.vectors.numpy().T
        np.testing.assert_allclose(block.along.mean, along.mean(0), rtol=1e-9, atol=1e-9)
        distance = ((whole[:, columns] - block.centre.numpy()) ** 2).sum(1)
        np.testing.assert_allclose(block.distance.mean, distance.mean(), rtol=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("column", range(6))
def test_nonfinite_replicates_are_counted_and_left_out_of_every_block(bad, column):
    rows = skewed_rows(300).repeat(1, 2)
    spoiled = rows.clone()
    spoiled[[3, 150, 299], column] = bad
    kept = np.delete(rows.numpy(), [3, 150, 299], axis=0)
    found = GradientMoments(SIZES, NO_CENTRES).extend(spoiled.split(100))
    assert found.nonfinite == 3
    for name, columns in (("value", slice(0, 1)), ("theta", slice(1, 3)), ("phi", slice(3, 6))):
        assert found.blocks[name].coordinates.count == 297
        np.testing.assert_allclose(found.blocks[name].coordinates.mean, kept[:, columns].mean(0), rtol=1e-12)


def test_nothing_finite_leaves_no_blocks():
    found = GradientMoments(SIZES, NO_CENTRES)
    found.add(torch.full((7, 6), math.inf))
    assert found.nonfinite == 7 and not found.blocks


def test_a_value_that_is_never_given_is_no_failure():
    rows = skewed_rows(100).repeat(1, 2)
    rows[:, 0] = math.nan
    found = GradientMoments(SIZES, NO_CENTRES).extend(rows.split(40))
    assert found.nonfinite == 0 and set(found.blocks) == {"theta", "phi"}
    assert found.blocks["phi"].coordinates.count == 100


def test_a_value_that_is_lost_for_a_whole_batch_is_one():
    rows = skewed_rows(100).repeat(1, 2)
    rows[40:80, 0] = math.nan
    found = GradientMoments(SIZES, NO_CENTRES).extend(rows.split(40))
    assert found.nonfinite == 40 and found.blocks["value"].coordinates.count == 60


@pytest.mark.parametrize("width", [5, 7])
def test_rows_of_another_width_are_refused(width):
    with pytest.raises(RuntimeError, match="split"):
        GradientMoments(SIZES, NO_CENTRES).add(torch.zeros(3, width))


def test_directions_are_unit_vectors_and_fixed():
    centre = torch.tensor([3.0, 4.0, 0.0], dtype=torch.float64)
    first, second = Directions.around(centre, "phi"), Directions.around(centre, "phi")
    assert torch.equal(first.vectors, second.vectors)
    torch.testing.assert_close(first.vectors[0], centre / 5)
    torch.testing.assert_close(first.vectors.norm(dim=1), torch.ones(9, dtype=torch.float64))
    assert len(first.names) == len(set(first.names)) == 9


def test_no_direction_along_a_gradient_that_is_zero():
    assert Directions.around(torch.zeros(1).double(), "theta").vectors.shape == (0, 1)
    assert "along" not in Directions.around(torch.zeros(4).double(), "phi").names[0]


@pytest.mark.parametrize("count", [3, 5, 256, 700, 9000])
def test_groups_keep_what_columns_have_in_common(count):
    """Against numpy's covariance of the groups' means, which are made by hand, of no more than columns too; by any batches."""
    rows = torch.as_tensor(
        np.random.default_rng(count).standard_normal((count, 3)) @ np.array([[1, 2, 0], [0, 1, 1], [1, 0, 3]])
    )
    whole, parts = (Groups(torch.zeros(3).double()) for _ in range(2))
    whole.add(rows)
    for part in rows.split(37):
        parts.add(part)
    kept = rows[: moments.RESERVOIR]
    groups = [kept[i :: moments.GROUPS].numpy() for i in range(min(count, moments.GROUPS))]
    weights = np.array([len(group) for group in groups])
    covariance = np.cov([group.mean(0) for group in groups], rowvar=False, aweights=weights, ddof=0)
    covariance *= weights.sum() / (len(groups) - 1)  # of one row, by the deviations of the means
    unit = torch.tensor([2.0, -1.0, 2.0], dtype=torch.float64) / 3
    n = len(groups) - 1
    expected = (np.trace(covariance @ covariance) - np.trace(covariance) ** 2 / n) * n**2 / ((n - 1) * (n + 2))
    for found in (whole, parts):
        assert found.freedom == n
        assert found.variance_along(unit) == pytest.approx(float(unit.numpy() @ covariance @ unit.numpy()), rel=1e-10)
        assert found.square_trace() == pytest.approx(expected, rel=1e-9)
        assert found.large_variance(expected) >= expected / np.trace(covariance) * (1 - 1e-9)
