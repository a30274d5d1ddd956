"""What Pyro's losses share as estimators of this suite, measured beside ours. Objects under test, not authorities.

Each calls `loss_and_grads` and reads the gradients of the unconstrained parameters, as one `pyro.infer.SVI` step does
before its optimiser moves. Pyro minimises and sums over the data plate: gradients here are negated and divided by the
number of data points. On our problems' twins particles are vectorised and the nesting of plates is told, Pyro's fastest
documented settings; users' programs run one particle at a time, its default, since they need not broadcast. Validation
stays on for twins, which is Pyro's default. Importing this module does not import Pyro.

References:
    Bingham et al. (2019), Pyro: Deep Universal Probabilistic Programming. Read in pyro-ppl 1.9.2.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from estimators import BLOCKS, Block, Gradient, LatentModel, Parameters

from ..problems.problem import Problem
from ..problems.pyro_problem import PyroProblem
from ..randomness import own_randomness
from .loop import LoopEstimator

if TYPE_CHECKING:
    from pyro.infer import ELBO


@dataclass(frozen=True)
class PyroLoss(LoopEstimator):
    """Abstract: one of Pyro's losses, with ``num_samples`` particles. Subclasses give :meth:`loss`."""

    library = "pyro"

    @abstractmethod
    def loss(self, **particles: Any) -> ELBO:
        """Pyro's own object, with the number of particles and how they are run."""

    def particles(self, problem: Problem) -> dict[str, Any]:
        """``num_particles`` and how they are run."""
        return one_by_one(self.num_samples) if isinstance(problem, PyroProblem) else vectorised(self.num_samples)

    def programs(self, model: Any, guide: Any) -> tuple[Any, Any]:
        """Model and guide as this loss wants them marked."""
        return model, guide

    def read(self, returned: Any) -> float:
        """The loss, to be minimised, in what ``loss_and_grads`` returns."""
        return float(returned)

    def objection(self, problem: Problem) -> str | None:
        """Why this loss means something else on this problem than it declares, or ``None``."""
        return None

    def refuses(self, model: LatentModel) -> str | None:
        from .pyro_models import TWINS

        name = getattr(model, "name", type(model).__name__)
        if name not in TWINS and not isinstance(model, PyroProblem):
            return (
                f"{self.label()} needs a Pyro twin of the problem, and {name} has none (there are: {', '.join(TWINS)})"
            )
        assert isinstance(model, Problem)
        reason = super().refuses(model) or self.objection(model)
        return None if reason is None else reason if reason.startswith(self.label()) else f"{self.label()}: {reason}"

    def prepared(self, problem: Problem, leaves: Parameters) -> None:
        """Called once with Pyro's store entered, before the first estimate."""

    def estimates(self, problem: Problem, parameters: Parameters) -> Generator[Gradient, None, None]:
        loss = self.loss(**self.particles(problem))
        with entered(problem, parameters) as (model, guide, leaves, points):
            model, guide = self.programs(model, guide)
            self.prepared(problem, leaves)
            while True:
                yield self.estimate(loss, model, guide, problem, leaves, points)

    def estimate(
        self, loss: ELBO, model: Any, guide: Any, problem: Problem, leaves: Parameters, points: int
    ) -> Gradient:
        """One step of Pyro's, up to where its optimiser would move."""
        for leaf in (*leaves["theta"].values(), *leaves["phi"].values()):
            leaf.grad = None
        value = -self.read(loss.loss_and_grads(model, guide)) / points
        theta, phi = (ascent(leaves[block], points) for block in BLOCKS)
        return Gradient(problem.tensor(value), theta, phi)

    def evaluations(self, problem: Problem, parameters: Parameters) -> float:
        from .pyro_models import Evaluations

        with (
            own_randomness(0, problem.data.device),
            closing(self.estimates(problem, parameters)) as estimates,
            Evaluations() as counted,
        ):
            next(estimates)
        return counted.number


def vectorised(num_samples: int) -> dict[str, Any]:
    """Particles of a twin, all at once."""
    from .pyro_models import PLATES

    # Untold, Pyro finds the nesting out by one more run of model and guide, which also moves the random state.
    return {"num_particles": num_samples, "vectorize_particles": True, "max_plate_nesting": PLATES}


def one_by_one(num_samples: int) -> dict[str, Any]:
    """Particles of a user's program, one after the other."""
    return {"num_particles": num_samples}


@contextmanager
def entered(problem: Problem, parameters: Parameters) -> Iterator[tuple[Any, Any, Parameters, int]]:
    """Model, guide, unconstrained leaves and the number of points that Pyro sums over, with Pyro's store as they need it."""
    import pyro

    from .pyro_models import declare, twin

    if isinstance(problem, PyroProblem):
        program = problem.program
        with program.scope():
            model, guide = (partial(each, *program.args, **program.kwargs) for each in (program.model, program.guide))
            yield model, guide, program.leaves, problem.total_points
        return
    model, guide = twin(problem, parameters)
    # The scope hides whatever the caller keeps in Pyro's one global store, and takes ours away again.
    with pyro.get_param_store().scope():
        leaves = {
            block: {name: leaf.unconstrained() for name, leaf in declare(block, parameters).items()} for block in BLOCKS
        }
        yield model, guide, leaves, len(problem.data)


def ascent(leaves: Block, points: int) -> Block:
    """Gradients to ascend, of the mean over data points; zero where Pyro left none, as its optimiser would see it."""
    return {
        name: torch.zeros_like(leaf, requires_grad=False) if leaf.grad is None else -leaf.grad / points
        for name, leaf in leaves.items()
    }


def traces(problem: Problem) -> tuple[Any, Any]:
    """Traces of the guide and of the model run against it, at the problem's parameters."""
    import pyro

    with own_randomness(0, problem.data.device), entered(problem, problem.parameters) as (model, guide, _, _):
        guide_trace = pyro.poutine.trace(guide).get_trace()
        model_trace = pyro.poutine.trace(pyro.poutine.replay(model, trace=guide_trace)).get_trace()
    return guide_trace, model_trace


def latents(trace: Any) -> dict[str, Any]:
    """Latent sites of a trace by name: neither observed nor the indices of a plate."""
    from pyro.poutine.subsample_messenger import _Subsample

    return {
        name: node
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not node["is_observed"] and not isinstance(node["fn"], _Subsample)
    }


def sites_of(problem: Problem) -> list[str]:
    """Names of the guide's latent sites."""
    from .pyro_models import latent_sites

    return list(latents(traces(problem)[0])) if isinstance(problem, PyroProblem) else latent_sites(problem)


def points_of(problem: Problem) -> int:
    """Data points over which the problem averages."""
    return problem.points if isinstance(problem, PyroProblem) else len(problem.data)


def differently_weighted(problem: Problem) -> str | None:
    """Where Pyro forms its importance weights otherwise than the problem does: why.

    Pyro weighs together what some plate does not hold: it sums log-weights over every plate that some site is outside of.
    """
    from pyro.poutine.subsample_messenger import _Subsample

    if not isinstance(problem, PyroProblem):
        return None  # all sites of a twin stand in one plate over the data points
    subset = other_subsets(problem)
    if subset is not None:
        return subset
    _, model = traces(problem)
    held = [
        {frame.name for frame in node["cond_indep_stack"] if frame.vectorized}
        for node in model.nodes.values()
        if node["type"] == "sample" and not isinstance(node["fn"], _Subsample)
    ]
    common = set.intersection(*held)
    if common == ({problem.plate} if problem.plate else set()):
        return None
    if not common:
        return f"Pyro forms one weight for all of plate {problem.plate!r} here, since some site is outside: leave plate= out"
    theirs = " and ".join(sorted(map(repr, common)))
    return f"Pyro weighs each element of plate {theirs} by itself here, since it holds every site: say plate="


def other_subsets(problem: PyroProblem) -> str | None:
    """Where particles see different subsets of the data, which makes another multi-sample bound: why."""
    for name, site in problem.program.sites.items():
        if site.subset:
            return f"Pyro draws another subset of plate {name!r} for each particle, so the weights are not of one posterior"
    return None
