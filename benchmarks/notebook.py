"""For notebooks and scripts: run, frame, plot, check.

Example:
    >>> from tempfile import TemporaryDirectory
    >>> from benchmarks.notebook import check, run
    >>> from reports import figures, frame
    >>> with TemporaryDirectory() as folder:
    ...     done = run(folder, ["gaussian-1d"], ["iwae", "dreg"], num_samples=[2, 8], replicates=300)
    ...     table = frame([folder])
    >>> figures.variance_against_cost(table).axes[0].get_ylabel()
    'variance'
    >>> bool(check("dreg", ["gaussian-1d"]))
    True
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from estimators import Estimator, Parameters, Refusal
from estimators.replicates import stacked

from . import plan, runner
from .check import Checked, check_named, exit_code
from .measure import run_cell
from .problems import Problem
from .records import write_cell
from .registry import Registry, named
from .schema import Record

__all__ = ["Moments", "Verdict", "check", "moments", "run"]


class Verdict(list[Checked]):
    """Findings, one per problem; true where every one that was judged passed."""

    @property
    def exit(self) -> int:
        """0 unbiased, 1 bias found, 3 no verdict: as ``gradest check`` exits."""
        return exit_code(self)

    def __bool__(self) -> bool:
        return self.exit == 0

    def __repr__(self) -> str:
        word = {0: "unbiased", 1: "BIASED", 3: "no verdict"}[self.exit]
        return "\n".join([word, *(f"{each.problem}: {each.finding}" for each in self)])


@dataclass(frozen=True)
class Moments:
    """Mean and variance of R gradient estimates, coordinate by coordinate, shaped as the parameters."""

    replicates: int
    mean: Parameters
    variance: Parameters

    def total_variance(self, block: str) -> float:
        """Summed over the coordinates of a block."""
        return sum(float(leaf.sum()) for leaf in self.variance[block].values())

    def standard_error(self, block: str, name: str) -> torch.Tensor:
        """Of the mean of one leaf."""
        return (self.variance[block][name] / self.replicates).sqrt()


def run(
    out: str | Path,
    problems: Sequence[str],
    estimators: Sequence[str] = ("*",),
    *,
    num_samples: Sequence[int] = (1, 8, 64),
    replicates: int = 4000,
    seeds: int = 1,
    plugins: Sequence[str] = (),
) -> list[Record]:
    """Measure cells in this process and keep them in a run folder; finished ones are not measured again.

    ``gradest run`` does the same in worker processes, with time limits. Returns the records of what was measured now.

    Raises:
        SpecError, Refusal: for an unknown name or a pair that cannot work, in one line.
    """
    folder, registry = Path(out), Registry(plugins)
    changes: dict[str, Any] = {
        "problems": list(problems), "estimators": list(estimators), "num_samples": list(num_samples),
        "replicates": replicates, "seeds": seeds,
    }  # fmt: skip
    whole = plan.configure(None, changes)
    cells, _ = plan.cells(whole, registry)
    books = runner.bibliography(cells, registry)
    settings = whole.model_dump(mode="json")
    runner.open_run(folder, cells, command="run(...)", settings=settings, bibliography=books, workers=1)
    left, _, _ = runner.pending(folder, cells)
    done = []
    for cell in left:
        record = Record.model_validate(run_cell(cell.model_dump(), tuple(plugins), str(folder)))
        write_cell(folder, record)
        done.append(record)
    return done


def check(
    estimator: str | Estimator,
    problems: Sequence[str | Problem] | None = None,
    *,
    num_samples: int | None = None,
    target: str | None = None,
    seed: int = 0,
    max_draws: int = 2_000_000,
) -> Verdict:
    """Is it unbiased for what it declares? ``estimator`` is a name, ``FILE.py:NAME``, or an instance.

    Example:
        >>> check("sticking-the-landing", ["gaussian-1d"]).exit
        0
    """
    estimators, path = (
        ([estimator], None) if isinstance(estimator, Estimator) else named(estimator, num_samples, target)
    )
    registry = Registry([path] if path else ())
    found = check_named(estimators, registry, problems, target=target, seed=seed, max_draws=max_draws)
    return Verdict(found)


def moments(estimator: str | Estimator, problem: str | Problem, *, replicates: int = 2000, seed: int = 0) -> Moments:
    """Mean and variance of ``replicates`` independent estimates.

    Raises:
        Refusal: if the estimator cannot work on that problem.
    """
    if not isinstance(estimator, Estimator):
        estimator = named(estimator, None, None)[0][0]
    if isinstance(problem, str):
        problem = Registry().problem(problem)
    reason = estimator.refuses(problem)
    if reason is not None:
        raise Refusal(reason)
    generator = torch.Generator(problem.device).manual_seed(seed)
    rows = stacked(estimator, problem, problem.parameters, replicates, generator).double()
    return Moments(replicates, *(_shaped(part, problem.parameters) for part in (rows.mean(0), rows.var(0))))


def _shaped(row: torch.Tensor, parameters: Parameters) -> Parameters:
    """A row ``(1 + P,)``, value first, as blocks of named leaves."""
    found: Parameters = {}
    place = 1
    for block in ("theta", "phi"):
        found[block] = {}
        for name, leaf in parameters[block].items():
            found[block][name] = row[place : place + leaf.numel()].reshape(leaf.shape)
            place += leaf.numel()
    return found
