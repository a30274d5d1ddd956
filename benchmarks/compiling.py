"""``torch.compile`` around the vectorised gradient, and a fall-back to eager that says why.

A compiled estimate differs from an eager one in rounding, so that ``compiled`` is part of a cell's identity. Compilation
takes seconds for each cell, and is reported apart from the seconds that a gradient takes.
"""

from __future__ import annotations

import importlib
import itertools
import threading
import time
import types
import warnings
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from estimators import Estimator
from estimators.replicates import Rows
from estimators.trees import tree_leaves, tree_map

from .references.loop import LoopEstimator

LENGTH = 200
"""Characters of a reason that are told."""


def compilable(estimator: Estimator) -> bool:
    """Whether one compiled function would serve all batches: not where their shapes are random, or where others compute."""
    return not estimator.random_cost and not isinstance(estimator, LoopEstimator)


def obstacle(device: str) -> str | None:
    """Why nothing can be compiled for a device here, such as a missing C++ compiler; ``None`` where a trial succeeds."""
    never_before = 1 + time.time_ns() % 10**9  # and so not among what was compiled and kept
    trial = CompiledRows(lambda noise: (noise * never_before).sin().sum(1), 8)
    trial(torch.ones(8, 4, device=device))
    return trial.problem


class CompiledRows:
    """The estimates of noise ``(rows, K, ...)`` by a function that is compiled once, at its first call, for ``size`` rows.

    Fewer rows are filled up with repeats of the first, and cut off again. Whatever goes wrong in compiling leads to the
    eager function from then on: ``problem`` says what it was, and ``seconds`` how long the first call took.

    Example:
        >>> compiled = CompiledRows(lambda noise: noise.sum(1), 4, backend="eager")
        >>> compiled(torch.ones(3, 2)), compiled.problem
        (tensor([2., 2., 2.]), None)
    """

    def __init__(self, eager: Rows, size: int, **settings: Any) -> None:
        self.eager = eager
        self.size = size
        self.problem: str | None = None
        self.seconds: float | None = None
        # One program for one size: there is nothing to guard, and looking costs a tenth of a batch's time.
        settings["options"] = {"guard_filter_fn": torch.compiler.skip_all_guards_unsafe, **settings.get("options", {})}
        if settings.get("backend", "inductor") == "inductor":
            # In this process: helpers of its own would outlive the cell.
            settings["options"] |= {"compile_threads": 1}
            with suppress(
                ImportError
            ):  # where it is there, torch shows progress by it, and leaves a thread and a semaphore behind
                tqdm = importlib.import_module("tqdm").tqdm
                tqdm.monitor_interval = 0
                tqdm.set_lock(threading.RLock())
        # What was compiled before this is of another cell, and would count towards torch's limit of variants.
        torch._dynamo.reset()
        self._compiled = torch.compile(_with_code_of_its_own(eager), fullgraph=True, dynamic=False, **settings)

    def __call__(self, noise: Any) -> Tensor:
        count = len(tree_leaves(noise)[0])
        if self.problem is not None or count > self.size:
            return self.eager(noise)
        full = tree_map(lambda leaf: _filled(leaf, self.size), noise) if count < self.size else noise
        if self.seconds is not None:
            return self._compiled(full)[:count]
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # the compiler's own, of what it imports
                return self._compiled(full)[:count]
        except Exception as problem:
            problem = getattr(problem, "inner_exception", problem)
            lines = str(problem).strip().splitlines() or [""]
            self.problem = f"{type(problem).__name__}: {lines[0]}"[:LENGTH]
            return self.eager(noise)
        finally:
            self.seconds = time.perf_counter() - start


def _with_code_of_its_own(rows: Rows) -> Rows:
    """The same function. torch keeps programs by the code they are of: without guards, two functions must not share it."""

    def called(noise: Any) -> Tensor:
        return rows(noise)

    code = called.__code__.replace(co_name=f"rows_{next(_NUMBERS)}")
    return types.FunctionType(code, called.__globals__, code.co_name, called.__defaults__, called.__closure__)


_NUMBERS = itertools.count()


def _filled(leaf: Tensor, size: int) -> Tensor:
    return torch.cat([leaf, leaf[:1].expand(size - len(leaf), *leaf.shape[1:])])
