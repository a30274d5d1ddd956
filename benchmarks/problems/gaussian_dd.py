"""Gaussian posteriors in several dimensions, with guides whose tail ratio rho is chosen and not found."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from estimators import Block, DiagonalGaussian, FullRankGaussian, Parameters, Target, standard_log_prob

from ..references import LinearGaussian
from ..references.joint_bounds import iwae
from ..references.joint_gaussian import TARGETS, JointGaussian, differentiated
from ..references.self_normalized import QuadratureError
from .gaussian import ALL, known_variance, require_noise
from .known_bounds import SMALL, SUMS, in_blocks, small_bound, sum_of_bounds
from .problem import Problem, Reference


@dataclass(frozen=True)
class JointlyGaussian(Problem):
    """Abstract: latents and data are jointly normal, and so is q. Subclasses give :meth:`law`."""

    exact_targets = (*TARGETS, "iwae", *SUMS, *SMALL)

    def law(self, parameters: Parameters) -> JointGaussian:
        """The law of latents and data, and the guide's, at any parameters."""
        raise NotImplementedError

    @cached_property
    def _double(self) -> JointlyGaussian:
        """This problem where exact values are computed, whatever its own precision."""
        return replace(self, dtype="float64")

    @property
    def tail_ratio(self) -> float:
        return self._double.law(self._double.parameters).tail_ratio()

    def exact(self, target: Target) -> Reference | None:
        if target.name not in self.exact_targets:
            return None
        if target.name == "iwae" and target.num_samples == 1:
            target = Target("elbo")
        if target.name in TARGETS:
            found = differentiated(self._double.law, self._double.parameters, target.name)
            return in_blocks(self, target, found, "algebra of normal laws")
        if target.name in SUMS:
            return sum_of_bounds(self, target)
        return self._bound(target) if target.name == "iwae" else small_bound(self, target)

    def _bound(self, target: Target) -> Reference:
        assert target.num_samples is not None
        try:
            found = iwae(self._double.law, self._double.parameters, target.num_samples)
        except QuadratureError:
            small = small_bound(self, target)  # of guides so far off that the integrals take too many nodes
            if small is None:
                raise
            return small
        return in_blocks(self, target, found, "Mellin-Barnes integrals over the law of a quadratic form")


@dataclass(frozen=True)
class _ChosenTail(JointlyGaussian):
    """Abstract: z ~ N(prior_loc, I), x | z ~ N(A z, s^2 I), one data point, and a guide placed by its distance and rho."""

    dim: int = 3
    rho: float = 1.2
    shift: float = 0.5
    seed: int = 0
    noise_scale: float = 1.0

    def validate(self) -> None:
        self.require(self.dim >= 1, f"dim must be at least 1, not {self.dim}")
        self.require(self.rho > 0, f"rho must be positive, not {self.rho}")
        self.require(self.seed >= 0, f"seed must not be negative, not {self.seed}")
        require_noise(self)

    @cached_property
    def _setting(self) -> dict[str, np.ndarray]:
        """Model, data, the guide's mean, the posterior precision and random axes."""
        rng = np.random.default_rng(self.seed)
        weight = rng.standard_normal((self.dim + 1, self.dim)) / self.dim**0.5
        prior_loc = rng.standard_normal(self.dim)
        z = prior_loc + rng.standard_normal(self.dim)
        x = weight @ z + self.noise_scale * rng.standard_normal(self.dim + 1)
        precision = np.eye(self.dim) + weight.T @ weight / self.noise_scale**2
        mean = np.linalg.solve(precision, prior_loc + weight.T @ x / self.noise_scale**2)
        direction = rng.standard_normal(self.dim)
        # ``shift`` posterior standard deviations away, whatever the direction.
        step = np.linalg.solve(np.linalg.cholesky(precision).T, direction / np.linalg.norm(direction))
        axes = np.linalg.qr(rng.standard_normal((self.dim, self.dim)))[0]
        loc = mean + self.shift * step
        return {"weight": weight, "prior_loc": prior_loc, "x": x, "loc": loc, "precision": precision, "axes": axes}

    def _placed(self) -> dict[str, np.ndarray]:
        """The guide's parameters but its mean."""
        raise NotImplementedError

    @cached_property
    def parameters(self) -> Parameters:
        s = self._setting
        theta = {"prior_loc": s["prior_loc"], "weight": s["weight"], "log_noise_scale": np.log(self.noise_scale)}
        return {
            "theta": {name: self.tensor(leaf) for name, leaf in theta.items()},
            "phi": {name: self.tensor(leaf) for name, leaf in {"loc": s["loc"], **self._placed()}.items()},
        }

    @cached_property
    def data(self) -> Tensor:
        return self.tensor(self._setting["x"][None])

    def law(self, parameters: Parameters) -> JointGaussian:
        theta, phi = parameters["theta"], parameters["phi"]
        one, n = torch.eye(self.dim).to(self.data), torch.eye(self.dim + 1).to(self.data)
        noise = n * theta["log_noise_scale"].exp()
        zero = self.data.new_zeros(self.dim + 1)
        loc, factor = phi["loc"][None], self._factor(phi)
        return JointGaussian(theta["prior_loc"], one, theta["weight"], zero, noise, self.data, loc, factor)

    def _factor(self, phi: Block) -> Tensor:
        """Of the guide's covariance."""
        raise NotImplementedError

    def prior(self, theta: Block) -> DiagonalGaussian:
        loc = theta["prior_loc"][None]
        return DiagonalGaussian(loc, loc.new_zeros(()).expand_as(loc))

    def log_likelihood(self, theta: Block, z: Tensor) -> Tensor:
        mean = z @ theta["weight"].mT
        return DiagonalGaussian(mean, theta["log_noise_scale"].expand_as(mean)).log_prob(self.data)

    def log_joint(self, theta: Block, z: Tensor) -> Tensor:
        return standard_log_prob(z, theta["prior_loc"]) + self.log_likelihood(theta, z)


@dataclass(frozen=True)
class GaussianMeanField(_ChosenTail):
    """A Gaussian posterior with precision P and a diagonal guide N(loc, V), V proportional to the inverse of P's diagonal.

    The factor of proportionality is such that rho, the smallest eigenvalue of V^(1/2) P V^(1/2), is the one asked for: the
    weights have a variance where rho > 1/2, a fourth moment where rho > 3/4, and are bounded where rho > 1. The best
    diagonal guide of a correlated posterior has rho < 1. z ~ N(prior_loc, I) and x | z ~ N(A z, s^2 I), with x of dim + 1
    dimensions drawn from the model and A's entries normal, divided by sqrt(dim).

    Arguments:
        dim: latent dimensions. rho: smallest eigenvalue, see above. shift: distance of q's mean from the posterior's, in
            posterior standard deviations. seed: of all that is drawn. noise_scale: s.

    theta: ``prior_loc`` (dim,), ``weight`` A (dim + 1, dim), ``log_noise_scale`` (); phi: ``loc`` and ``log_scale``, (dim,).

    L_K, ``ciwae`` and ``jackknife`` for any K; other bounds where K dim is at most four.
    """

    name = "gaussian-mean-field"
    version = "2"
    summary = "Gaussian posterior in D dimensions, diagonal guide: Var(w) exists or not as the user chooses rho"
    offers = ALL

    def _placed(self) -> dict[str, np.ndarray]:
        precision = self._setting["precision"]
        scale = np.diag(precision) ** -0.5
        least = np.linalg.eigvalsh(scale[:, None] * precision * scale)[0]
        return {"log_scale": np.log(scale) + 0.5 * np.log(self.rho / least)}

    def _factor(self, phi: Block) -> Tensor:
        return torch.diag(phi["log_scale"].exp())

    def exact_variance(self, estimator: str, num_samples: int, block: str) -> float | None:
        names = {"phi": ("loc", "log_scale"), "theta": ("prior_loc", "weight", "log_noise_scale")}.get(block)
        return None if names is None else known_variance(self._closed_form, estimator, num_samples, block, names)

    @cached_property
    def _closed_form(self) -> LinearGaussian:
        s, log_scale = self._setting, self._placed()["log_scale"]
        bias = np.zeros(self.dim + 1)
        log_noise_scale = float(np.log(self.noise_scale))
        return LinearGaussian(s["weight"], bias, log_noise_scale, s["prior_loc"], s["x"], s["loc"], log_scale)

    def guide(self, phi: Block) -> DiagonalGaussian:
        return DiagonalGaussian(phi["loc"][None], phi["log_scale"][None])


@dataclass(frozen=True)
class GaussianFullRank(_ChosenTail):
    """A Gaussian posterior with precision P and a guide N(loc, L L') of full rank.

    The eigenvalues of P^(1/2) L L' P^(1/2), along random axes, go in equal ratios from ``rho`` to ``spread`` times it; with
    rho, spread and shift at 1, 1 and 0, q is the posterior. The weights have a variance where rho > 1/2, a fourth moment
    where rho > 3/4, and are bounded where rho > 1. The model is that of ``gaussian-mean-field``.

    Arguments:
        dim: latent dimensions. rho: smallest eigenvalue, see above. shift: distance of q's mean from the posterior's, in
            posterior standard deviations. seed: of all that is drawn. noise_scale: s. spread: largest over smallest
            eigenvalue.

    theta: ``prior_loc`` (dim,), ``weight`` A (dim + 1, dim), ``log_noise_scale`` (); phi: ``loc`` (dim,), ``log_scale``
    (dim,), the logarithm of L's diagonal, and ``below``, the rest of L row by row.

    L_K, ``ciwae`` and ``jackknife`` for any K; other bounds where K dim is at most four.
    """

    spread: float = 2.0

    name = "gaussian-full-rank"
    version = "3"
    summary = "Gaussian posterior in D dimensions, guide of full rank: Var(w) exists or not as the user chooses rho"
    offers = ALL - {"gaussian", "analytic_kl"}

    def validate(self) -> None:
        super().validate()
        self.require(self.spread >= 1, f"spread must be at least 1, not {self.spread}")

    def _placed(self) -> dict[str, np.ndarray]:
        s = self._setting
        values = self.rho * np.geomspace(1.0, self.spread, self.dim)
        half = np.linalg.inv(np.linalg.cholesky(s["precision"]).T) @ s["axes"]
        factor = np.linalg.cholesky(half * values @ half.T)
        return {"log_scale": np.log(np.diag(factor)), "below": factor[np.tril_indices(self.dim, -1)]}

    def _factor(self, phi: Block) -> Tensor:
        return self.guide(phi).scale_tril[0]

    def guide(self, phi: Block) -> FullRankGaussian:
        return FullRankGaussian(phi["loc"][None], phi["log_scale"][None], phi["below"][None])
