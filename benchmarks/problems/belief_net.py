"""Discrete latents whose every expectation is a sum: small belief networks with Bernoulli units."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from estimators import Bernoulli, Block, Parameters

from .discrete import Discrete

DISCRETE = frozenset({"bernoulli", "enumerable", "factorised", "relaxable", "data"})


@dataclass(frozen=True)
class SigmoidBeliefNet(Discrete):
    """z_d ~ Bernoulli(sigmoid(prior_logits_d)), x_i | z ~ Bernoulli(sigmoid((W z + b)_i)), q a product of Bernoullis.

    W has normal entries of standard deviation ``coupling``, b and the prior's logits standard normal ones; x is drawn from
    the model. q has free logits for each data point: those of the posterior's marginals moved by ``perturbation`` standard
    normals. Everything is a sum over the 2^dim states, and multi-sample bounds one over K-tuples of them; the relaxed ELBO is
    integrated for up to about three latents.

    Arguments:
        dim: binary latents, at most 12. data_dim: observed bits. points: data points. seed: of all that is drawn.
        coupling: spread of the weights. perturbation: distance of q from the posterior's marginals, in logits.

    theta: ``prior_logits`` (dim,), ``weight`` (data_dim, dim), ``bias`` (data_dim,); phi: ``logits`` (points, dim).

    References:
        Neal (1992); Mnih & Gregor (2014).
    """

    dim: int = 3
    data_dim: int = 5
    seed: int = 0
    points: int = 1
    coupling: float = 1.5
    perturbation: float = 0.7

    name = "sigmoid-belief-net"
    version = "2"
    summary = "Bernoulli latents under a one-layer sigmoid belief network: everything by enumeration"
    citations = ("neal1992", "mnih2014")
    offers = DISCRETE
    exact_targets = (
        "elbo", "iwae", "log_marginal", "forward_kl", "renyi", "ciwae", "jackknife", "f_divergence", "tvo", "tvo_upper",
        "relaxed_elbo",
    )  # fmt: skip

    def validate(self) -> None:
        for field in ("dim", "data_dim", "points"):
            self.require(getattr(self, field) >= 1, f"{field} must be at least 1, not {getattr(self, field)}")
        self.require(self.dim <= 12, f"dim must be at most 12, not {self.dim}: its 2^dim states are summed over")
        self.require(self.seed >= 0, f"seed must not be negative, not {self.seed}")

    @cached_property
    def setting(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        prior = rng.standard_normal(self.dim)
        weight = self.coupling * rng.standard_normal((self.data_dim, self.dim))
        bias = rng.standard_normal(self.data_dim)

        def sigmoid(x: np.ndarray) -> np.ndarray:
            return np.exp(-np.logaddexp(0, -x))

        z = (rng.random((self.points, self.dim)) < sigmoid(prior)).astype(float)
        x = (rng.random((self.points, self.data_dim)) < sigmoid(z @ weight.T + bias)).astype(float)
        states = ((np.arange(2**self.dim)[:, None] >> np.arange(self.dim)) & 1).astype(float)
        logits = states @ weight.T + bias
        log_p = states @ prior + x @ logits.T - np.logaddexp(0, logits).sum(1)
        posterior = np.exp(log_p - log_p.max(1, keepdims=True))
        marginal = (posterior @ states / posterior.sum(1, keepdims=True)).clip(0.02, 0.98)
        moved = np.log(marginal / (1 - marginal)) + self.perturbation * rng.standard_normal(marginal.shape)
        return {"prior": prior, "weight": weight, "bias": bias, "x": x, "logits": moved}

    @cached_property
    def parameters(self) -> Parameters:
        s = self.setting
        theta = {"prior_logits": s["prior"], "weight": s["weight"], "bias": s["bias"]}
        return {
            "theta": {name: self.tensor(value) for name, value in theta.items()},
            "phi": {"logits": self.tensor(s["logits"])},
        }

    @property
    def number_of_states(self) -> int:
        return 2**self.dim

    def guide(self, phi: Block) -> Bernoulli:
        return Bernoulli(phi["logits"])

    def log_joint(self, theta: Block, z: Tensor) -> Tensor:
        logits = z @ theta["weight"].mT + theta["bias"]
        return Bernoulli(theta["prior_logits"]).log_prob(z) + Bernoulli(logits).log_prob(self.data)
