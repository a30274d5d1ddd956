"""The moment engine: replicates of a gradient in, streaming central moments out. Memory is constant in R.

Columns are the value, every coordinate of the gradient, and a few *directions* (unit vectors) within each block. Non-finite
replicates are counted and left out of every sum.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache

import torch
from torch import Tensor

from .sizes import large_variance, square_trace

RESERVOIR = 8192
LARGEST = 1000
TAIL_ROWS = 1_000_000
"""Tails are judged on this many replicates at most: the largest thousandth of them is what is kept."""
GROUPS = 256
FOURTH_ORDER_COLUMNS = 10_000
RANDOM_DIRECTIONS = 8
STRIP = 2**13
"""Columns of a wide block that are taken in at a time: with the rows of a batch they fit a processor's cache."""


@dataclass
class Moments:
    """Count, mean and central sums of powers 2 to 4 of columns, float64; mergeable in any grouping.

    ``m3`` and ``m4`` are empty where only second order is kept. Formulas: Chan, Golub & LeVeque (1979) for the mean and
    second order, Pebay (2008) for third and fourth.

    Example:
        >>> x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        >>> merged = Moments.of(x[:30]).merge(Moments.of(x[30:]))
        >>> torch.allclose(merged.variance, x.var(0))
        True
    """

    count: int
    mean: Tensor
    m2: Tensor
    m3: Tensor
    m4: Tensor

    @classmethod
    def of(cls, rows: Tensor, order: int = 4) -> Moments:
        """Moments of ``(R, C)`` rows, R >= 1."""
        rows = rows.double()
        mean = rows.mean(0)
        centred = rows - mean
        squares = centred.square()
        empty = mean.new_empty(0)
        m3 = (squares * centred).sum(0) if order == 4 else empty
        m4 = squares.square().sum(0) if order == 4 else empty
        return cls(rows.shape[0], mean, squares.sum(0), m3, m4)

    def merge(self, other: Moments) -> Moments:
        """The moments of both samples together."""
        a, b = self.count, other.count
        n = a + b
        delta = other.mean - self.mean
        mean = self.mean + delta * (b / n)
        m2 = self.m2 + other.m2 + delta.square() * (a * b / n)
        if not self.m3.numel():
            return Moments(n, mean, m2, self.m3, self.m4)
        m3 = self.m3 + other.m3 + delta**3 * (a * b * (a - b) / n**2) + 3 * delta * (a * other.m2 - b * self.m2) / n
        m4 = (
            self.m4
            + other.m4
            + delta**4 * (a * b * (a * a - a * b + b * b) / n**3)
            + 6 * delta.square() * (a * a * other.m2 + b * b * self.m2) / n**2
            + 4 * delta * (a * other.m3 - b * self.m3) / n
        )
        return Moments(n, mean, m2, m3, m4)

    @property
    def variance(self) -> Tensor:
        """Unbiased (n - 1) variance of each column."""
        return self.m2 / max(self.count - 1, 1)

    @property
    def skewness(self) -> Tensor:
        """Standardised third central moment; zero where the variance is zero."""
        return torch.where(self.m2 > 0, self.count**0.5 * self.m3 / self.m2.clamp_min(1e-300) ** 1.5, 0.0)

    @property
    def kurtosis(self) -> Tensor:
        """Standardised fourth central moment, 3 for a normal law; zero where the variance is zero."""
        return torch.where(self.m2 > 0, self.count * self.m4 / self.m2.clamp_min(1e-300).square(), 0.0)


@dataclass
class Tail:
    """What a column's tail looks like: its largest values, their share of the sum, and its first values as a sample."""

    count: int = 0
    total: float = 0.0
    largest: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))
    first: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.float64))

    def add(self, values: Tensor) -> None:
        """Take in non-negative values ``(R,)``."""
        values = values[: TAIL_ROWS - self.count].double().cpu()
        if not len(values):
            return
        self.count += len(values)
        self.total += float(values.sum())
        both = torch.cat([self.largest, values])
        self.largest = both.topk(min(LARGEST, len(both))).values
        if len(self.first) < RESERVOIR:
            self.first = torch.cat([self.first, values[: RESERVOIR - len(self.first)]])

    def share_of_largest(self, fraction: float = 1e-3) -> float:
        """The part of the sum that the largest ``fraction`` of the values carries."""
        top = max(1, int(self.count * fraction))
        return float(self.largest[:top].sum()) / self.total if self.total > 0 else 0.0


class Groups:
    """What columns have in common: sums of every 256th of the first rows, a sample of the mean's law.

    A covariance of thousands of columns is too large to keep, and two numbers of it are all that an interval needs.
    """

    def __init__(self, columns: Tensor) -> None:
        self.sums = columns.new_zeros(GROUPS, len(columns), dtype=torch.float64)
        self.count = 0

    def add(self, rows: Tensor) -> None:
        """Take in rows ``(R, C)``."""
        rows = rows[: RESERVOIR - self.count]
        place = (self.count + torch.arange(len(rows), device=rows.device)) % GROUPS
        self.sums.index_add_(0, place, rows.double())
        self.count += len(rows)

    def _centred(self) -> Tensor:
        """Deviations of the groups' means, each with the covariance of one row; the sum of their squares has n - 1 degrees."""
        used = min(self.count, GROUPS)
        sums = self.sums[:used]
        extra = torch.arange(used, device=sums.device) < self.count % GROUPS
        rows = (self.count // GROUPS + extra).double()[:, None]
        return (sums / rows - sums.sum(0) / self.count) * rows.sqrt()

    @property
    def freedom(self) -> int:
        """Degrees of freedom of what is below."""
        return min(self.count, GROUPS) - 1

    def variance_along(self, vector: Tensor) -> float:
        """Variance of one row along a unit vector."""
        return float((self._centred() @ vector).square().sum()) / self.freedom

    def _products(self) -> Tensor:
        """Of the deviations with one another, or of the columns where these are fewer: powers of both have the same traces."""
        centred = self._centred()
        return centred.T @ centred if centred.shape[1] < len(centred) else centred @ centred.T

    def square_trace(self) -> float:
        """tr(S^2) of the covariance S of one row, without bias where the groups' means are normal."""
        return square_trace(self._products(), self.freedom)

    def large_variance(self, square_trace: float) -> float:
        """Variance of one row where there is much noise, by :func:`benchmarks.sizes.large_variance`."""
        return large_variance(self._products(), self.freedom, square_trace)


@dataclass(frozen=True)
class Directions:
    """Unit vectors within one block: first the direction of its centre, then fixed random ones; ``(m, dimensions)``."""

    vectors: Tensor
    names: list[str]

    @classmethod
    def around(cls, centre: Tensor, block: str) -> Directions:
        """Directions for a block whose reference gradient, or a first estimate of it, is ``centre``."""
        names, vectors = [], []
        norm = centre.norm()
        if norm > 0:
            names.append(f"{block}: along the gradient")
            vectors.append(centre / norm)
        if len(centre) > 1:
            vectors += list(_random_directions(len(centre)).to(centre))
            names += [f"{block}: random direction {i}" for i in range(RANDOM_DIRECTIONS)]
        return cls(torch.stack(vectors) if vectors else centre.new_empty(0, len(centre)), names)


@lru_cache(maxsize=4)
def _random_directions(dimensions: int) -> Tensor:
    """Fixed unit vectors of one size; kept, because those of a network take as long as a hundred of its gradients."""
    generator = torch.Generator().manual_seed(dimensions)
    random = torch.randn(RANDOM_DIRECTIONS, dimensions, generator=generator, dtype=torch.float64)
    return random / random.norm(dim=1, keepdim=True)


class BlockMoments:
    """Everything that is accumulated for one block: coordinates, directions, and squared distance from a fixed centre."""

    def __init__(self, block: str, centre: Tensor) -> None:
        self.block = block
        self.centre = centre
        self.directions = Directions.around(centre, block)
        self.order = 4 if len(centre) <= FOURTH_ORDER_COLUMNS else 2
        self.coordinates: Moments | None = None
        self.along: Moments | None = None
        self.distance: Moments | None = None
        self.groups = Groups(centre) if self.order == 4 else None
        self.tail = Tail()
        self._vectors = self.directions.vectors

    def add(self, rows: Tensor) -> None:
        """Take in finite rows ``(R, dimensions)``."""
        if self._vectors.dtype != rows.dtype:
            self._vectors = self.directions.vectors.to(rows)
        if self.groups is not None:
            self.groups.add(rows)
            self.coordinates = _merged(self.coordinates, Moments.of(rows, self.order))
            squared = (rows.double() - self.centre).square().sum(1)
        else:
            squared = self._add_strips(rows)
        self.along = _merged(self.along, Moments.of(rows @ self._vectors.T, 4))
        self.distance = _merged(self.distance, Moments.of(squared[:, None], 4))
        self.tail.add(squared)

    def _add_strips(self, rows: Tensor) -> Tensor:
        """Take in the coordinates of wide rows, strip by strip and in place; returns squared distances from the centre.

        The same sums as elsewhere. What is saved are passes over main memory, which would outlast the gradient itself.
        """
        if self.coordinates is None:
            mean, m2 = (torch.zeros_like(self.centre, dtype=torch.float64) for _ in range(2))
            self.coordinates = Moments(0, mean, m2, mean.new_empty(0), mean.new_empty(0))
        kept, squared = self.coordinates, rows.new_zeros(len(rows), dtype=torch.float64)
        a, b = kept.count, len(rows)
        for start in range(0, rows.shape[1], STRIP):
            here = slice(start, start + STRIP)
            part = rows[:, here].double()
            mean = part.mean(0)
            centred = part - mean
            m2 = centred.square_().sum(0)
            squared += torch.sub(part, self.centre[here], out=centred).square_().sum(1)
            delta = mean.sub_(kept.mean[here])
            kept.mean[here].add_(delta, alpha=b / (a + b))
            kept.m2[here].add_(m2).addcmul_(delta, delta, value=a * b / (a + b))
        kept.count = a + b
        return squared


def _merged(old: Moments | None, new: Moments) -> Moments:
    return new if old is None else old.merge(new)


def _finite(columns: dict[str, Tensor]) -> Tensor:
    """Which rows are finite in all columns."""
    # A sum over a row with anything else in it is not finite either; where one is not, it may be for its size alone.
    finite = torch.stack([part.sum(1) for part in columns.values()]).isfinite().all(0)
    if bool(finite.all()):
        return finite
    return torch.stack([part.isfinite().all(1) for part in columns.values()]).all(0)


class GradientMoments:
    """Moments of the value and of both blocks of a gradient, from batches of replicates.

    Arguments:
        sizes: number of columns of ``value`` (1), ``theta`` and ``phi``.
        centres: reference value or gradient of each of them, float64, or ``None`` to take the median of the first batch.
    """

    def __init__(self, sizes: dict[str, int], centres: dict[str, Tensor | None]) -> None:
        self.sizes = sizes
        self.centres = centres
        self.blocks: dict[str, BlockMoments] = {}
        self.nonfinite = 0

    def add(self, rows: Tensor) -> None:
        """Take in a batch ``(R, 1 + P)``. A value that the estimator does not give (NaN throughout) does not count."""
        columns = dict(zip(self.sizes, rows.split(list(self.sizes.values()), 1), strict=True))
        if "value" not in self.blocks and bool(columns["value"].isnan().all()):
            columns.pop("value")
        finite = _finite(columns)
        self.nonfinite += int((~finite).sum())
        if not bool(finite.any()):
            return
        for name, block_rows in columns.items():
            kept = block_rows if bool(finite.all()) else block_rows[finite]
            if name not in self.blocks:
                centre = self.centres[name]
                # A median: where tails are heavy, a mean of few is no centre.
                centre = kept.double().median(0).values if centre is None else centre.to(kept.device)
                self.blocks[name] = BlockMoments(name, centre)
            self.blocks[name].add(kept)

    def extend(self, batches: Iterable[Tensor]) -> GradientMoments:
        """Take in all batches."""
        for rows in batches:
            self.add(rows)
        return self
