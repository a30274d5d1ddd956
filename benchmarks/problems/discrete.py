"""What problems with few discrete states share: data that were drawn once, and exact values by summing over all states."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from estimators import Target

from ..references.relaxed import relaxed
from ..references.summation import enumerated
from .problem import Problem, Reference


@dataclass(frozen=True)
class Discrete(Problem):
    """Abstract: a subclass gives :attr:`setting` with its data under ``x``, and its parameters, densities and guide."""

    @cached_property
    @abstractmethod
    def setting(self) -> dict[str, np.ndarray]:
        """All that is drawn from the seed."""

    @property
    @abstractmethod
    def number_of_states(self) -> int:
        """Values that one data point's latent can take."""

    @cached_property
    def data(self) -> Tensor:
        return self.tensor(self.setting["x"])

    def exact(self, target: Target) -> Reference | None:
        if target.name == "relaxed_elbo":
            found, method = relaxed(self, self.parameters, target), "tanh-sinh quadrature over the noise that relaxes"
        elif target.name in self.exact_targets:
            found, method = enumerated(self, self.parameters, target), f"sum over {self.number_of_states} states"
        else:
            return None
        if found is None:
            return None
        value, gradient = found
        blocks = {"phi": gradient["phi"]} if target.name == "forward_kl" else gradient
        return Reference(value, blocks, method)
