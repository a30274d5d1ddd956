"""Categorical latents whose every expectation is a sum: one variable is a mixture, several a factorial one."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from torch import Tensor

from estimators import Block, Categorical, DiagonalGaussian, Parameters

from .discrete import Discrete

MOST_STATES = 4096


@dataclass(frozen=True)
class CategoricalMixture(Discrete):
    """z_d ~ Cat(softmax(prior_logits_d)), x | z ~ N(sum_d W_d z_d, diag(s^2)), z one-hot, q a product of categoricals.

    W has normal entries of standard deviation ``coupling``, the prior's logits standard normal ones, s lies around one; x is
    drawn from the model. q has free logits for each data point: those of the posterior's marginals moved by ``perturbation``
    standard normals. With ``dim=1`` this is the Gaussian mixture with one label for each data point. Everything is a sum over
    the values^dim states, and multi-sample bounds one over K-tuples of them; between the corners of the simplex log p(x, z)
    is a quadratic in z. The relaxed ELBO is integrated for one latent of at most three values.

    Arguments:
        dim: categorical latents. values: of each; values^dim at most 4096. data_dim: observed numbers. points: data points.
        seed: of all that is drawn. coupling: spread of the weights. perturbation: distance of q from the posterior's
            marginals, in logits.

    theta: ``prior_logits`` (dim, values), ``weight`` (data_dim, dim, values), ``log_noise_scale`` (data_dim,); phi:
    ``logits`` (points, dim, values).

    References:
        Ghahramani (1995).
    """

    dim: int = 2
    values: int = 3
    data_dim: int = 3
    seed: int = 0
    points: int = 1
    coupling: float = 1.0
    perturbation: float = 0.7

    name = "categorical"
    version = "2"
    summary = "categorical latents under a factorial mixture of Gaussians: everything by enumeration"
    citations = ("ghahramani1995",)
    offers = frozenset({"categorical", "enumerable", "factorised", "relaxable", "data"})
    exact_targets = (
        "elbo", "iwae", "log_marginal", "forward_kl", "renyi", "ciwae", "jackknife", "f_divergence", "tvo", "tvo_upper",
        "relaxed_elbo",
    )  # fmt: skip

    def validate(self) -> None:
        for field in ("dim", "data_dim", "points"):
            self.require(getattr(self, field) >= 1, f"{field} must be at least 1, not {getattr(self, field)}")
        self.require(self.values >= 2, f"values must be at least 2, not {self.values}")
        self.require(
            self.dim <= 12 and self.values**self.dim <= MOST_STATES,
            f"values^dim must be at most {MOST_STATES}, not {self.values}^{self.dim}: all states are summed over",
        )
        self.require(self.seed >= 0, f"seed must not be negative, not {self.seed}")

    @cached_property
    def setting(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(self.seed)
        prior = rng.standard_normal((self.dim, self.values))
        weight = self.coupling * rng.standard_normal((self.data_dim, self.dim, self.values))
        log_scale = 0.3 * rng.standard_normal(self.data_dim)

        shape = (self.values,) * self.dim
        states = np.eye(self.values)[np.stack(np.unravel_index(np.arange(np.prod(shape)), shape), -1)]
        mean = np.einsum("sdc,idc->si", states, weight)
        log_prior = prior - np.log(np.exp(prior).sum(1, keepdims=True))
        log_state = (states * log_prior).sum((1, 2))
        drawn = rng.choice(len(states), self.points, p=np.exp(log_state) / np.exp(log_state).sum())
        x = mean[drawn] + np.exp(log_scale) * rng.standard_normal((self.points, self.data_dim))

        log_p = log_state - 0.5 * (((x[:, None] - mean) / np.exp(log_scale)) ** 2).sum(-1)
        posterior = np.exp(log_p - log_p.max(1, keepdims=True))
        posterior /= posterior.sum(1, keepdims=True)
        marginal = np.einsum("ps,sdc->pdc", posterior, states).clip(0.02)
        moved = np.log(marginal) + self.perturbation * rng.standard_normal(marginal.shape)
        return {"prior": prior, "weight": weight, "log_scale": log_scale, "x": x, "logits": moved}

    @cached_property
    def parameters(self) -> Parameters:
        s = self.setting
        theta = {"prior_logits": s["prior"], "weight": s["weight"], "log_noise_scale": s["log_scale"]}
        return {
            "theta": {name: self.tensor(value) for name, value in theta.items()},
            "phi": {"logits": self.tensor(s["logits"])},
        }

    @property
    def number_of_states(self) -> int:
        return self.values**self.dim

    def guide(self, phi: Block) -> Categorical:
        return Categorical(phi["logits"])

    def log_joint(self, theta: Block, z: Tensor) -> Tensor:
        mean = z.flatten(-2) @ theta["weight"].flatten(-2).mT
        likelihood = DiagonalGaussian(mean, theta["log_noise_scale"].expand_as(mean))
        return Categorical(theta["prior_logits"]).log_prob(z) + likelihood.log_prob(self.data)
