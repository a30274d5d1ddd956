"""Estimators of other libraries: they draw their own noise and give one estimate per call.

What such a library offers cannot be handed noise and cannot be vectorised over replicates, so the engine asks for
replicates instead. Its estimates are under test here, as ours are; they are no authority.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from estimators import BLOCKS, Draw, Estimator, Gradient, Guide, LatentModel, Parameters

from ..cost import metered
from ..problems.problem import Problem
from ..randomness import own_randomness
from ..schema import Cost


@dataclass(frozen=True)
class LoopEstimator(Estimator):
    """Abstract: an estimator that another library draws, one estimate at a time.

    Subclasses give :meth:`estimates` and :meth:`evaluations`. ``library`` says whose it is; ``counterpart`` names the
    estimator of this suite that claims the same.
    """

    library: ClassVar[str] = ""
    counterpart: ClassVar[str] = ""

    def load(self) -> None:
        """Import the library. Called before anything is watched or timed: some imports draw random numbers (jax's does)."""

    def beside(self, problem: Problem) -> str:
        """The estimator of this suite to be shown beside this one on a problem: the counterpart, unless that depends."""
        return self.counterpart

    @abstractmethod
    def estimates(self, problem: Problem, parameters: Parameters) -> Generator[Gradient, None, None]:
        """Independent estimates without end, drawn from torch's global generator of the problem's device.

        In ascent direction, of the mean over data points. The tensors of one may be overwritten by the next.
        """

    def gradients(self, problem: Problem, parameters: Parameters, replicates: int, seed: int) -> Gradient:
        """``replicates`` independent estimates; equal seeds give equal numbers, and no global random state is changed.

        Arguments:
            problem: data and model; one that :meth:`refuses` lets pass.
            parameters: blocks ``theta`` and ``phi``, never written to.
            replicates: how many estimates.
            seed: any integer of 64 bits.

        Returns:
            value ``(replicates,)`` in nats (mean over data points, detached) and gradients ``(replicates, *leaf)``.
        """
        value = problem.data.new_empty(replicates)
        blocks = {
            block: {name: leaf.new_empty((replicates, *leaf.shape)) for name, leaf in parameters[block].items()}
            for block in BLOCKS
        }
        # Closed, not left to the garbage collector: a library may have its own global state to put back.
        with own_randomness(seed, problem.data.device), closing(self.estimates(problem, parameters)) as estimates:
            for row, estimate in zip(range(replicates), estimates, strict=False):
                value[row] = estimate.value
                for block, of_block in (("theta", estimate.theta), ("phi", estimate.phi)):
                    for name, leaf in blocks[block].items():
                        leaf[row] = of_block[name]
        return Gradient(value, blocks["theta"], blocks["phi"])

    @abstractmethod
    def evaluations(self, problem: Problem, parameters: Parameters) -> float:
        """Values of log p(x, z) that one estimate asks for, data points counted singly; counted, not assumed."""

    def count(self, problem: Problem, parameters: Parameters) -> Cost:
        """Exact evaluations, FLOPs and peak bytes of one estimate, as :func:`benchmarks.cost.count` takes them."""
        with own_randomness(0, problem.data.device), closing(self.estimates(problem, parameters)) as estimates:
            next(estimates)  # so that what is made once is not counted
            meter = metered(lambda: next(estimates))
        return Cost(
            evaluations_per_gradient=self.evaluations(problem, parameters),
            flops_per_gradient=meter.flops,
            bytes_moved_per_gradient=meter.moved,
            peak_bytes=meter.peak,
        )

    def draws(self, guide: Guide, replicates: int, generator: torch.Generator) -> list[Draw]:
        raise NotImplementedError(f"{self.label()} draws its own noise: call gradients()")

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        raise NotImplementedError(f"{self.label()} draws its own noise: call gradients()")
