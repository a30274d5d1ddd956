"""Pyro's losses for the one-sample bound compiled by `torch.jit.trace`, as estimators of this suite (:mod:`.pyro_loss`).

Compiled once for each problem, before anything is timed. torch calls `torch.jit.trace` deprecated.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from estimators import Gradient, Parameters

from ..problems.problem import Problem
from ..problems.pyro_problem import PyroProblem
from ..randomness import own_randomness
from ..schema import Cost
from .pyro_loss import PyroLoss, entered
from .pyro_one_sample import OneSample, PyroTraceELBO, PyroTraceEnumELBO, PyroTraceGraphELBO, PyroTraceMeanFieldELBO

if TYPE_CHECKING:
    from collections.abc import Generator

    from pyro.infer import ELBO


@dataclass(frozen=True)
class _Compiled(OneSample):
    """Abstract: what :meth:`plain` is, compiled."""

    @property
    @abstractmethod
    def plain(self) -> PyroLoss:
        """The same loss as it is run without compiling."""

    @property
    def counterpart(self) -> str:  # type: ignore[override]
        return self.plain.counterpart

    def beside(self, problem: Problem) -> str:
        return self.plain.beside(problem)

    def programs(self, model: Any, guide: Any) -> tuple[Any, Any]:
        return self.plain.programs(model, guide)

    def objection(self, problem: Problem) -> str | None:
        if isinstance(problem, PyroProblem):
            return "Pyro's JIT takes data as arguments alone and freezes the rest, which a user's program may rely on"
        if problem.name == "digits-vae":
            return "torch.jit.trace cannot compile the functional calls of this problem's networks"
        return self.plain.objection(problem)

    def estimates(self, problem: Problem, parameters: Parameters) -> Generator[Gradient, None, None]:
        loss, model, guide = _compiled(self, problem)
        with entered(problem, parameters) as (_, _, leaves, points):
            while True:
                with warnings.catch_warnings():
                    # For the one that compiles anew at every call.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    estimate = self.estimate(loss, model, guide, problem, leaves, points)
                yield estimate

    def evaluations(self, problem: Problem, parameters: Parameters) -> float:
        # What is compiled runs no site that could be counted.
        return self.plain.evaluations(problem, parameters)


@lru_cache(maxsize=8)
def _compiled(estimator: _Compiled, problem: Problem) -> tuple[ELBO, Any, Any]:
    """A loss that has run once, with the model and guide that it was compiled for: Pyro knows them by their ``id``."""
    loss = estimator.loss(**estimator.particles(problem))
    with (
        own_randomness(0, problem.data.device),
        entered(problem, problem.parameters) as (model, guide, leaves, points),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore", DeprecationWarning)
        model, guide = estimator.programs(model, guide)
        estimator.estimate(loss, model, guide, problem, leaves, points)
    return loss, model, guide


@dataclass(frozen=True)
class PyroJitTraceELBO(_Compiled):
    """Pyro's `JitTrace_ELBO`: `Trace_ELBO` compiled by `torch.jit.trace`.

    .. math:: \\nabla K^{-1} \\sum_k \\log w(T_\\phi(\\epsilon_k))

    References:
        Bingham et al. (2019); Kingma & Welling (2014).
    """

    name = "pyro-jit-trace-elbo"
    citations = ("bingham2019", "kingma2014")

    @property
    def plain(self) -> PyroLoss:
        return PyroTraceELBO(num_samples=self.num_samples)

    def loss(self, **particles: Any) -> ELBO:
        from pyro.infer import JitTrace_ELBO

        return JitTrace_ELBO(ignore_jit_warnings=True, **particles)


@dataclass(frozen=True)
class PyroJitTraceGraphELBO(_Compiled):
    """Pyro's `JitTraceGraph_ELBO`: `TraceGraph_ELBO` without baselines, compiled by `torch.jit.trace`.

    .. math:: K^{-1} \\sum_k \\sum_i \\log w_k^{(i)} \\, h_k^{(i)}

    References:
        Bingham et al. (2019); Schulman, Heess, Weber & Abbeel (2015).
    """

    name = "pyro-jit-trace-graph-elbo"
    citations = ("bingham2019", "schulman2015")

    @property
    def plain(self) -> PyroLoss:
        return PyroTraceGraphELBO(num_samples=self.num_samples)

    def loss(self, **particles: Any) -> ELBO:
        from pyro.infer import JitTraceGraph_ELBO

        return JitTraceGraph_ELBO(ignore_jit_warnings=True, **particles)


@dataclass(frozen=True)
class PyroJitTraceMeanFieldELBO(_Compiled):
    """Pyro's `JitTraceMeanField_ELBO`: `TraceMeanField_ELBO` compiled by `torch.jit.trace`, anew at every call.

    .. math:: \\nabla \\{ K^{-1} \\sum_k \\log p_\\theta(x | T_\\phi(\\epsilon_k)) - KL(q_\\phi \\| p_\\theta(z)) \\}

    Warning:
        Pyro 1.9.2 looks for what it compiled under a name that it never sets: each call compiles, at the cost of two more runs
        of model and guide.

    References:
        Bingham et al. (2019); Kingma & Welling (2014), appendix B.
    """

    name = "pyro-jit-trace-mean-field-elbo"
    citations = ("bingham2019", "kingma2014")
    needs = frozenset({"reparameterizable"})

    @property
    def plain(self) -> PyroLoss:
        return PyroTraceMeanFieldELBO(num_samples=self.num_samples)

    def count(self, problem: Problem, parameters: Parameters) -> Cost:
        """Of the loss as it is run without compiling: a compiler at work cannot be metered. Seconds are its own."""
        return self.plain.count(problem, parameters)

    def loss(self, **particles: Any) -> ELBO:
        from pyro.infer import JitTraceMeanField_ELBO

        return JitTraceMeanField_ELBO(ignore_jit_warnings=True, **particles)


@dataclass(frozen=True)
class PyroJitTraceEnumELBO(_Compiled):
    """Pyro's `JitTraceEnum_ELBO`: `TraceEnum_ELBO`, sites in parallel, compiled by `torch.jit.trace`.

    .. math:: \\nabla \\sum_z q_\\phi(z) \\log w(z)

    References:
        Bingham et al. (2019); Foerster et al. (2018).
    """

    name = "pyro-jit-trace-enum-elbo"
    citations = ("bingham2019", "foerster2018")
    snr_slopes = {}

    @property
    def plain(self) -> PyroLoss:
        return PyroTraceEnumELBO(num_samples=self.num_samples)

    def loss(self, **particles: Any) -> ELBO:
        from pyro.infer import JitTraceEnum_ELBO

        return JitTraceEnum_ELBO(strict_enumeration_warning=False, ignore_jit_warnings=True, **particles)
