"""One gradient from two estimators: one for theta, one for phi, at common samples where they can have them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from estimators import Estimator, Gradient, Guide, LatentModel, Parameters, Refusal, Target, TotalDerivative, Weights
from estimators.trees import tree_leaves, tree_map


@dataclass(frozen=True)
class Merged(Estimator):
    """Two weights rules in one pass: path and score from phi's, model weights and value from theta's.

    Arguments:
        theta_rule, phi_rule: the estimators whose rules are merged.
    """

    theta_rule: Estimator = field(kw_only=True)
    phi_rule: Estimator = field(kw_only=True)

    @property
    def targets(self) -> dict[str, Target | None]:
        return {"theta": self.theta_rule.targets["theta"], "phi": self.phi_rule.targets["phi"]}

    def weights(self, log_w: Tensor) -> Weights:
        model = self.theta_rule.weights(log_w).model
        ours = self.phi_rule.weights(log_w)
        if isinstance(ours, TotalDerivative):
            return TotalDerivative(ours.path, ours.score, model)
        return Weights(ours.path, ours.score, model)

    def value(self, log_w: Tensor) -> Tensor | None:
        return self.theta_rule.value(log_w)


@dataclass(frozen=True)
class Pair:
    """theta's estimator, phi's, and whether phi is estimated at theta's samples."""

    theta: Estimator
    phi: Estimator
    shared: bool = False

    def __post_init__(self) -> None:
        if self.theta.targets["theta"] is None:
            raise Refusal(f"{self.theta.label()} estimates nothing for theta; give theta another estimator")
        if self.shared and not (is_rule(self.theta) and is_rule(self.phi) and plain_draws(self.phi)):
            raise Refusal(
                f"{self.phi.label()} cannot use the samples of {self.theta.label()}: both must be weights rules, and phi's "
                "must draw nothing of its own; set shared = false"
            )

    @property
    def alike(self) -> bool:
        """One estimator for both blocks."""
        return type(self.theta) is type(self.phi) and self.theta == self.phi

    @property
    def one_pass(self) -> bool:
        """Whether one set of samples and one pass serve both: always where neither needs more than its log-weights."""
        both = (self.theta, self.phi)
        same = all(is_rule(each) and plain_draws(each) for each in both)
        return self.alike or self.shared or (same and self.theta.num_samples == self.phi.num_samples)

    def refuses(self, model: LatentModel) -> str | None:
        """Why one of the two cannot work on a model."""
        return self.theta.refuses(model) or self.phi.refuses(model)

    def draw(self, guide: Guide, streams: dict[str, torch.Generator]) -> dict[str, Any]:
        """Noise of one estimate: of theta's estimator, and of phi's where it has samples of its own."""
        with torch.no_grad():
            drawn = {"theta": _first(self.theta, guide, streams["theta"])}
            if not self.one_pass:
                drawn["phi"] = _first(self.phi, guide, streams["phi"])
        return drawn

    def gradient(self, model: LatentModel, parameters: Parameters, noise: dict[str, Any]) -> Gradient:
        """One estimate of both blocks."""
        if self.alike:
            return self.theta.gradient(model, parameters, noise["theta"])
        if self.one_pass:
            K = int(tree_leaves(noise["theta"])[0].shape[0])
            phi = self.phi if self.phi.num_samples == K else dataclasses.replace(self.phi, num_samples=K)
            merged = Merged(K, theta_rule=self.theta, phi_rule=phi)
            return merged.gradient(model, parameters, noise["theta"])
        ours = self.theta.gradient(model, parameters, noise["theta"])
        theirs = self.phi.gradient(model, parameters, noise["phi"])
        return Gradient(ours.value, ours.theta, theirs.phi)

    def adapted(self, model: LatentModel, parameters: Parameters, noise: dict[str, Any]) -> Pair:
        """The pair after it has learnt from a draw whose gradient was used."""
        if not self.learns:
            return self
        theta = self.theta.adapted(model, parameters, noise["theta"])
        phi = theta if self.alike else self.phi.adapted(model, parameters, noise.get("phi", noise["theta"]))
        return dataclasses.replace(self, theta=theta, phi=phi)

    @property
    def learns(self) -> bool:
        """Whether anything is learnt from one step to the next."""
        return bool(self.theta.warm_up or self.phi.warm_up)


def is_rule(estimator: Estimator) -> bool:
    """Whether it is nothing but its ``weights``."""
    kind = type(estimator)
    return kind.gradient is Estimator.gradient and kind.weights is not Estimator.weights


def plain_draws(estimator: Estimator) -> bool:
    """Whether its noise is that of K samples of the guide."""
    return type(estimator).draws is Estimator.draws


def _first(estimator: Estimator, guide: Guide, stream: torch.Generator) -> Any:
    (draw,) = estimator.draws(guide, 1, stream)
    return tree_map(lambda leaf: leaf[0], draw.noise)
