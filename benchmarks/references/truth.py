"""What one block of an estimate is judged by."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Truth:
    """A block's gradient in float64, ``(P,)``, exact or from a long run.

    Arguments:
        gradient: the reference.
        method: how it was found, for people.
        batch_means: ``(B, P)`` means of independent parts of a long run, whose mean is ``gradient``; ``None`` if exact.
        centre: a vector near ``gradient`` whose direction is tested. For a long run it comes from draws of its own: along
            the noise of the reference itself every estimator would look biased.
    """

    gradient: Tensor
    method: str
    batch_means: Tensor | None = None
    centre: Tensor | None = None

    @property
    def standard_error(self) -> Tensor:
        """Of each coordinate, ``(P,)``; zeros where exact."""
        if self.batch_means is None:
            return torch.zeros_like(self.gradient)
        return (self.batch_means.var(0) / len(self.batch_means)).sqrt()

    def variance_along(self, vectors: Tensor) -> Tensor:
        """Variance of the reference's error along unit vectors ``(m, P)``, correlations between coordinates included."""
        if self.batch_means is None:
            return vectors.new_zeros(len(vectors))
        return (self.batch_means @ vectors.to(self.batch_means).T).var(0) / len(self.batch_means)

    @property
    def degrees_of_freedom(self) -> float:
        """Of the two above."""
        return float("inf") if self.batch_means is None else len(self.batch_means) - 1
