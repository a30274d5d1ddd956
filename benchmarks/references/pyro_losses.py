"""Pyro's losses as estimators of this suite, measured beside ours. Objects under test, not authorities.

Each calls `loss_and_grads` and reads the gradients of the unconstrained parameters, as one `pyro.infer.SVI` step does
before its optimiser moves. Pyro minimises and sums over the data plate: gradients here are negated and divided by the
number of data points. Particles are vectorised and the nesting of plates is told, Pyro's fastest documented settings;
its validation stays on, which is its default. Importing this module does not import Pyro.

References:
    Bingham et al. (2019), Pyro: Deep Universal Probabilistic Programming. Read in pyro-ppl 1.9.2.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from estimators import BLOCKS, Block, Gradient, LatentModel, Parameters, Target

from ..problems.problem import Problem
from .loop import LoopEstimator, own_randomness

if TYPE_CHECKING:
    from pyro.infer import ELBO


@dataclass(frozen=True)
class PyroLoss(LoopEstimator):
    """Abstract: one of Pyro's losses, with ``num_samples`` particles. Subclasses give :meth:`loss`."""

    library = "pyro"
    needs = frozenset({"reparameterizable"})

    @abstractmethod
    def loss(self) -> ELBO:
        """Pyro's own object."""

    def refuses(self, model: LatentModel) -> str | None:
        from .pyro_models import TWINS

        name = getattr(model, "name", type(model).__name__)
        if name not in TWINS:
            return (
                f"{self.label()} needs a Pyro twin of the problem, and {name} has none (there are: {', '.join(TWINS)})"
            )
        return super().refuses(model)

    def estimates(self, problem: Problem, parameters: Parameters) -> Generator[Gradient, None, None]:
        import pyro

        from .pyro_models import declare, twin

        model, guide = twin(problem, parameters)
        loss, points = self.loss(), len(problem.data)
        # The scope hides whatever the caller keeps in Pyro's one global store, and takes ours away again.
        with pyro.get_param_store().scope():
            leaves = {
                block: {name: leaf.unconstrained() for name, leaf in declare(block, parameters).items()}
                for block in BLOCKS
            }
            while True:
                for leaf in (*leaves["theta"].values(), *leaves["phi"].values()):
                    leaf.grad = None
                value = -loss.loss_and_grads(model, guide) / points
                theta, phi = (_ascent(leaves[block], points) for block in BLOCKS)
                yield Gradient(problem.tensor(value), theta, phi)

    def evaluations(self, problem: Problem, parameters: Parameters) -> float:
        from .pyro_models import Evaluations

        with (
            own_randomness(0, problem.data.device),
            closing(self.estimates(problem, parameters)) as estimates,
            Evaluations() as counted,
        ):
            next(estimates)
        return counted.number


def _ascent(leaves: Block, points: int) -> Block:
    """Gradients to ascend, of the mean over data points; zero where Pyro left none, as its optimiser would see it."""
    return {
        name: torch.zeros_like(leaf, requires_grad=False) if leaf.grad is None else -leaf.grad / points
        for name, leaf in leaves.items()
    }


def _vectorised(num_samples: int) -> dict[str, int | bool]:
    from .pyro_models import PLATES

    # Untold, Pyro finds the nesting out by one more run of model and guide, which also moves the random state.
    return {"num_particles": num_samples, "vectorize_particles": True, "max_plate_nesting": PLATES}


@dataclass(frozen=True)
class PyroTraceELBO(PyroLoss):
    """Pyro's `Trace_ELBO`: on Gaussian guides the reparameterised total derivative.

    .. math:: \\nabla K^{-1} \\sum_k \\log w(T_\\phi(\\epsilon_k))

    References:
        Bingham et al. (2019); Kingma & Welling (2014).
    """

    name = "pyro-trace-elbo"
    family = "elbo"
    counterpart = "reparameterization"
    citations = ("bingham2019", "kingma2014")
    snr_slopes = {"theta": 0.5, "phi": 0.5}

    @property
    def targets(self) -> dict[str, Target | None]:
        return {"theta": Target("elbo"), "phi": Target("elbo")}

    def loss(self) -> ELBO:
        from pyro.infer import Trace_ELBO

        return Trace_ELBO(**_vectorised(self.num_samples))


@dataclass(frozen=True)
class PyroTraceMeanFieldELBO(PyroLoss):
    """Pyro's `TraceMeanField_ELBO`: reparameterised likelihood, closed-form KL to the prior.

    .. math:: \\nabla \\{ K^{-1} \\sum_k \\log p_\\theta(x | T_\\phi(\\epsilon_k)) - KL(q_\\phi \\| p_\\theta(z)) \\}

    Warning:
        The same KL is computed once for every particle.

    References:
        Bingham et al. (2019); Kingma & Welling (2014), appendix B.
    """

    name = "pyro-trace-mean-field-elbo"
    family = "elbo"
    counterpart = "reparameterization-analytic-kl"
    citations = ("bingham2019", "kingma2014")
    needs = frozenset({"reparameterizable", "gaussian", "analytic_kl"})
    snr_slopes = {"theta": 0.5, "phi": 0.5}

    @property
    def targets(self) -> dict[str, Target | None]:
        return {"theta": Target("elbo"), "phi": Target("elbo")}

    def loss(self) -> ELBO:
        from pyro.infer import TraceMeanField_ELBO

        return TraceMeanField_ELBO(**_vectorised(self.num_samples))


@dataclass(frozen=True)
class PyroRenyiELBO(PyroLoss):
    """Pyro's `RenyiELBO(alpha=0)`: on reparameterised guides the importance-weighted bound's total derivative.

    .. math:: \\sum_k \\tilde w_k \\nabla \\log w(T_\\phi(\\epsilon_k))

    Warning:
        Weights are per data point only because all sites of a twin stand in one shared plate. Pyro sums log-weights
        over every plate that some site is outside of, and so bounds the joint log p(x_1, ..., x_B) with one weight for
        all data points: another, looser bound. Where the guide is not reparameterisable its gradient is exactly zero,
        without a warning; hence ``needs``.

    References:
        Li & Turner (2016); Burda, Grosse & Salakhutdinov (2016); Bingham et al. (2019).
    """

    name = "pyro-renyi-elbo"
    family = "multi-sample"
    counterpart = "iwae"
    citations = ("bingham2019", "li2016", "burda2016")
    snr_slopes = {"theta": 0.5, "phi": -0.5}

    @property
    def targets(self) -> dict[str, Target | None]:
        target = Target("iwae", self.num_samples)
        return {"theta": target, "phi": target}

    def loss(self) -> ELBO:
        from pyro.infer import RenyiELBO

        return RenyiELBO(alpha=0, **_vectorised(self.num_samples))


LOSSES: tuple[type[PyroLoss], ...] = (PyroTraceELBO, PyroTraceMeanFieldELBO, PyroRenyiELBO)
