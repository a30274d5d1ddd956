"""What losses of Rényi's bounds in other libraries claim, whosever they are."""

from __future__ import annotations

from dataclasses import dataclass

from estimators import Refusal, Target

from ..problems.problem import Problem
from .loop import LoopEstimator


@dataclass(frozen=True)
class RenyiClaims(LoopEstimator):
    """Abstract: both blocks claim the bound of K samples at ``alpha``, of which alpha = 0 is L_K.

    Raises:
        Refusal: for alpha = 1, where the bound is the ELBO and these losses divide by zero.
    """

    alpha: float = 0.0

    family = "multi-sample"
    snr_slopes = {"theta": 0.5, "phi": -0.5}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha == 1:
            raise Refusal(f"{self.label()} takes any alpha but 1; that is {self.library}-trace-elbo")

    @property
    def targets(self) -> dict[str, Target | None]:
        bound = Target("renyi", self.num_samples, setting=self.alpha)
        target = bound if self.alpha else Target("iwae", self.num_samples)
        return {"theta": target, "phi": target}

    @property
    def counterpart(self) -> str:  # type: ignore[override]
        return f"renyi[alpha={self.alpha!r}]" if self.alpha else "iwae"

    def beside(self, problem: Problem) -> str:
        if "reparameterizable" in problem.offers:
            return self.counterpart
        return f"renyi-score[alpha={self.alpha!r}]" if self.alpha else "multi-sample-score"
