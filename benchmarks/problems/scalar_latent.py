"""Problems with one scalar latent: closed forms where there are any, for the rest sums over a grid of the latent itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor
from torch.func import grad

from estimators import Parameters, Target

from ..references.on_a_line import MOST_SAMPLES, Mesh, summed
from .known_bounds import SUMS, sum_of_bounds
from .problem import Problem, Reference

SMALL = ("iwae", "renyi", "ciwae", "jackknife", "f_divergence")
"""Targets known by sums over a grid of z: where K is at most 2, and L_K and its combinations for every K."""


@dataclass(frozen=True)
class ScalarLatent(Problem):
    """Abstract: closed forms for some targets, for the rest sums over a grid of the latent."""

    offers = frozenset({"reparameterizable", "twice_differentiable", "data"})
    exact_targets = ("elbo", "log_marginal", "forward_kl", *SMALL)

    @property
    def mesh(self) -> Mesh:
        """Grids over all that matters of the guide's law."""
        raise NotImplementedError

    def closed_forms(self) -> dict[str, Callable[[Parameters], Tensor]]:
        """Values by target, mean over data points, as functions of the parameters."""
        raise NotImplementedError

    def summed(self, target: Target) -> tuple[float, Parameters] | None:
        """Value and gradient by a sum over the grid, where no closed form is known."""
        return summed(self, self.parameters, target, self.mesh)

    def exact(self, target: Target) -> Reference | None:
        if target.name == "iwae" and target.num_samples == 1:
            target = Target("elbo")
        # In double precision, whatever the problem's own.
        twin = self if self.dtype == "float64" else replace(self, dtype="float64")
        form, method = twin.closed_forms().get(target.name), "closed form"
        if form is not None:
            value, gradient = float(form(twin.parameters)), grad(form)(twin.parameters)
        elif target.name in SUMS and (target.num_samples or 1) > MOST_SAMPLES:
            return sum_of_bounds(self, target)
        elif target.name in self.exact_targets:
            found = twin.summed(target)
            if found is None:
                return None
            (value, gradient), method = found, "trapezoid rule over z"
            if target.name == "iwae" and (target.num_samples or 1) > MOST_SAMPLES:
                method = "trapezoid rules over z and over t of E exp(-t w)"
        else:
            return None
        numbers = {name: leaf for leaves in gradient.values() for name, leaf in leaves.items()}
        return self.reference(target, {**numbers, "value": value}, method)
