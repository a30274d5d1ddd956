"""NumPyro's losses as estimators of this suite, vectorised over replicates. Objects under test, not authorities.

Each is `jax.value_and_grad` of the loss, as one `numpyro.infer.SVI` step takes it, compiled once for each problem and mapped
over keys: replicates come in batches, as NumPyro's users can have them too. FLOPs and bytes are XLA's own counts. They are
registered where NumPyro is installed (the extra ``numpyro``); importing this module imports neither it nor JAX.

References:
    Phan, Pradhan & Jankowiak (2019). Read in numpyro 0.22.0.
"""

from __future__ import annotations

import importlib.util
from abc import abstractmethod
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from estimators import BLOCKS, Gradient, LatentModel, Parameters, Target

from ..problems.problem import Problem
from ..schema import Cost
from .loop import LoopEstimator
from .renyi_claims import RenyiClaims

NAMES = ("gaussian-1d", "linear-gaussian", "two-layer-gaussian", "sigmoid-belief-net")
"""Problems that have a twin."""


def installed() -> bool:
    """Whether NumPyro and JAX can be imported."""
    return all(importlib.util.find_spec(name) is not None for name in ("numpyro", "jax"))


@dataclass(frozen=True)
class NumPyroLoss(LoopEstimator):
    """Abstract: one of NumPyro's losses, with ``num_samples`` particles. Subclasses give :meth:`loss`."""

    library = "numpyro"

    @abstractmethod
    def loss(self) -> Any:
        """NumPyro's own object."""

    def load(self) -> None:
        from . import numpyro_models  # noqa: F401

    def refuses(self, model: LatentModel) -> str | None:
        name = getattr(model, "name", type(model).__name__)
        if name not in NAMES:
            return f"{self.label()} needs a NumPyro twin of the problem, and {name} has none (there are: {', '.join(NAMES)})"
        assert isinstance(model, Problem)
        if torch.device(model.device).type != "cpu":
            return f"{self.label()} runs on the CPU here, not on {model.device}"
        return super().refuses(model)

    def estimates(self, problem: Problem, parameters: Parameters) -> Generator[Gradient, None, None]:
        while True:
            seed = int(torch.randint(2**62, ()))
            drawn = self.gradients(problem, parameters, 1, seed)
            theta, phi = ({name: leaf[0] for name, leaf in block.items()} for block in (drawn.theta, drawn.phi))
            yield Gradient(drawn.value[0], theta, phi)

    def gradients(self, problem: Problem, parameters: Parameters, replicates: int, seed: int) -> Gradient:
        import jax

        with _precision(problem):
            # Keys take 32 bits at a time.
            key = jax.random.fold_in(jax.random.key(seed & 0x7FFFFFFF), (seed >> 31) & 0x7FFFFFFF)
            value, found = _compiled(self, problem)(jax.random.split(key, replicates), _arrays(parameters))
            points = len(problem.data)
            blocks: dict[str, dict[str, Tensor]] = {block: {} for block in BLOCKS}
            for block in BLOCKS:
                for name in parameters[block]:
                    blocks[block][name] = -_tensor(found[f"{block}.{name}"], problem) / points
            return Gradient(-_tensor(value, problem) / points, blocks["theta"], blocks["phi"])

    def evaluations(self, problem: Problem, parameters: Parameters) -> float:
        import jax

        from .numpyro_models import TWINS, Evaluations

        counted = Evaluations()
        with _precision(problem), counted:
            _loss(self, TWINS[problem.name](problem))(jax.random.key(0), _arrays(parameters))
        return counted.number * self.num_samples

    def count(self, problem: Problem, parameters: Parameters) -> Cost:
        import jax

        evaluations = self.evaluations(problem, parameters)
        with _precision(problem):
            keys = jax.random.split(jax.random.key(0), 1)
            program = _compiled(self, problem).lower(keys, _arrays(parameters)).compile()  # type: ignore[attr-defined]
            counted, memory = program.cost_analysis(), program.memory_analysis()
        return Cost(
            evaluations_per_gradient=evaluations,
            flops_per_gradient=float(counted["flops"]),
            peak_bytes=int(memory.temp_size_in_bytes + memory.output_size_in_bytes),
        )


def _loss(estimator: NumPyroLoss, twin: Any) -> Callable[[Any, Any], Any]:
    loss = estimator.loss()
    return lambda key, parameters: loss.loss(key, parameters, twin.model, twin.guide)


@lru_cache(maxsize=16)
def _compiled(estimator: NumPyroLoss, problem: Problem) -> Callable[[Any, Any], Any]:
    """Loss and gradient for a batch of keys, ``(R, ...)``."""
    import jax

    from .numpyro_models import TWINS

    one = jax.value_and_grad(_loss(estimator, TWINS[problem.name](problem)), argnums=1)
    return jax.jit(jax.vmap(one, in_axes=(0, None)))


def _precision(problem: Problem) -> Any:
    import jax

    return jax.enable_x64(problem.dtype == "float64")


def _arrays(parameters: Parameters) -> dict[str, Any]:
    from .numpyro_models import array

    return {f"{block}.{name}": array(leaf) for block in BLOCKS for name, leaf in parameters[block].items()}


def _tensor(array: Any, problem: Problem) -> Tensor:
    import numpy as np

    return problem.tensor(np.array(array))


@dataclass(frozen=True)
class NumPyroTraceELBO(NumPyroLoss):
    """NumPyro's `Trace_ELBO`: the reparameterised total derivative.

    .. math:: \\nabla K^{-1} \\sum_k \\log w(T_\\phi(\\epsilon_k))

    Warning:
        A guide that is not reparameterised is not refused by NumPyro, whose documentation excludes it: its gradient is
        then -h, of mean zero.

    References:
        Phan, Pradhan & Jankowiak (2019); Kingma & Welling (2014).
    """

    name = "numpyro-trace-elbo"
    family = "elbo"
    counterpart = "reparameterization"
    citations = ("phan2019", "kingma2014")
    needs = frozenset({"reparameterizable"})
    snr_slopes = {"theta": 0.5, "phi": 0.5}

    @property
    def targets(self) -> dict[str, Target | None]:
        return {"theta": Target("elbo"), "phi": Target("elbo")}

    def loss(self) -> Any:
        from numpyro.infer import Trace_ELBO

        return Trace_ELBO(num_particles=self.num_samples)


@dataclass(frozen=True)
class NumPyroTraceGraphELBO(NumPyroLoss):
    """NumPyro's `TraceGraph_ELBO`: sites that are not reparameterised take the score of what lies downstream.

    .. math:: K^{-1} \\sum_k \\log w_k \\, h_k

    References:
        Phan, Pradhan & Jankowiak (2019); Schulman, Heess, Weber & Abbeel (2015).
    """

    name = "numpyro-trace-graph-elbo"
    family = "elbo"
    counterpart = "score-function"
    citations = ("phan2019", "schulman2015")
    snr_slopes = {"theta": 0.5, "phi": 0.5}

    @property
    def targets(self) -> dict[str, Target | None]:
        return {"theta": Target("elbo"), "phi": Target("elbo")}

    def beside(self, problem: Problem) -> str:
        return "reparameterization" if "reparameterizable" in problem.offers else self.counterpart

    def loss(self) -> Any:
        from numpyro.infer import TraceGraph_ELBO

        return TraceGraph_ELBO(num_particles=self.num_samples)


@dataclass(frozen=True)
class NumPyroRenyiELBO(RenyiClaims, NumPyroLoss):
    """NumPyro's `RenyiELBO`: on reparameterised guides the total derivative of the Rényi bound; alpha = 0 is L_K.

    .. math:: \\sum_k \\tilde w_k^{(\\alpha)} \\nabla \\log w(T_\\phi(\\epsilon_k))

    Arguments:
        num_samples: K.
        alpha: any number but 1.

    Warning:
        A guide that is not reparameterised gets minus the self-normalised score: away from the posterior, without a
        warning.

    References:
        Li & Turner (2016); Burda, Grosse & Salakhutdinov (2016); Phan, Pradhan & Jankowiak (2019).
    """

    name = "numpyro-renyi-elbo"
    citations = ("phan2019", "li2016", "burda2016")

    def loss(self) -> Any:
        from numpyro.infer import RenyiELBO

        return RenyiELBO(alpha=self.alpha, num_particles=self.num_samples)


LOSSES: tuple[type[NumPyroLoss], ...] = (NumPyroTraceELBO, NumPyroTraceGraphELBO, NumPyroRenyiELBO)
