"""Who is measured with whom, and in which order: cells that share draws go together, cells of one problem after another.

A worker that stays with a problem keeps what it has made for it (long-run references, parameters). Neither order nor
company changes a number.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence

from .schema import SHARED, Cell

LARGEST = 16
"""Cells in one company: what one of them costs the others, should it fail, and what one worker does while others end."""


def sharing(cell: Cell) -> tuple[object, ...] | None:
    """What cells must have in common to share draws; ``None`` of one that shares with nobody."""
    if cell.versions.get(SHARED) is None:
        return None
    return (cell.problem, cell.num_samples, cell.replicates, cell.seed, cell.dtype, cell.device, cell.matmul_precision)


def companies(cells: Iterable[Cell]) -> list[list[Cell]]:
    """The cells in companies of at most :data:`LARGEST`, most of them of one, in the order of their first."""
    found: list[list[Cell]] = []
    open_to: dict[tuple[object, ...], list[Cell]] = {}
    for cell in cells:
        key = sharing(cell)
        if key is not None and key in open_to and len(open_to[key]) < LARGEST:
            open_to[key].append(cell)
            continue
        found.append([cell])
        if key is not None:
            open_to[key] = found[-1]
    return found


class Waiting:
    """Companies that wait for a worker. Whoever has ended one goes on with the same problem, or one that nobody is at.

    Example:
        >>> cells = [Cell(problem=p, estimator="e", num_samples=1, replicates=2, seed=s) for p in "ab" for s in (0, 1)]
        >>> waiting = Waiting([[cell] for cell in cells])
        >>> [waiting.take(after, [])[0].problem for after in (None, "a", "a", "b")], len(waiting)
        (['a', 'a', 'b', 'b'], 0)
    """

    def __init__(self, given: Sequence[list[Cell]]) -> None:
        self._by_problem: dict[str, deque[list[Cell]]] = {}
        for company in given:
            self._by_problem.setdefault(company[0].problem, deque()).append(company)

    def __len__(self) -> int:
        return sum(map(len, self._by_problem.values()))

    def __bool__(self) -> bool:
        return bool(self._by_problem)

    def take(self, after: str | None, busy: Iterable[str]) -> list[Cell]:
        """The next company for a worker that was at the problem ``after``, while others are at ``busy``."""
        at = Counter(busy)
        # The first in order among those with fewest workers.
        problem = after if after in self._by_problem else min(self._by_problem, key=lambda name: at[name])
        line = self._by_problem[problem]
        company = line.popleft()
        if not line:
            del self._by_problem[problem]
        return company

    def put_back(self, companies: Sequence[list[Cell]]) -> None:
        """Let these be next of their problem."""
        for company in reversed(companies):
            self._by_problem.setdefault(company[0].problem, deque()).appendleft(company)
