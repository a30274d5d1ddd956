"""Two stochastic layers whose every expectation is known: the problem on which hierarchical estimators are judged."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from estimators import Block, DiagonalGaussian, Hierarchical, Parameters

from ..references.joint_gaussian import JointGaussian
from .gaussian import require_noise
from .gaussian_dd import JointlyGaussian


@dataclass(frozen=True)
class TwoLayerGaussian(JointlyGaussian):
    """z2 ~ N(prior_loc, I), z1 | z2 ~ N(W z2 + c, s1^2 I), x | z1 ~ N(A z1 + b, s^2 I), and a guide that goes up.

    .. math:: q(z_1 | x) = N(B x + d, \\mathrm{diag}\\, v_1), \\qquad q(z_2 | z_1) = N(C z_1 + e, \\mathrm{diag}\\, v_2)

    W, A and the offsets have standard normal entries, W's and A's divided by the square root of their columns; x is drawn
    from the model. The guide stands where both means are the posterior's own, with the best diagonal variances given them,
    and every parameter of it is then moved by ``perturbation`` standard normals. One latent in each layer and no
    perturbation make q the posterior.

    Arguments:
        dim, upper_dim: latents in z1 and in z2. data_dim: data dimensions. points: data points.
        seed: of all that is drawn. noise_scale: both s and s1. perturbation: distance of q from its optimum.

    theta: ``prior_loc`` (upper_dim,), ``upper_weight`` W, ``upper_bias`` c, ``upper_log_scale`` log s1, ``weight`` A,
    ``bias`` b, ``log_noise_scale`` log s; phi: ``weight`` B, ``bias`` d, ``log_scale`` log v1 / 2, ``upper_weight`` C,
    ``upper_bias`` e, ``upper_log_scale`` log v2 / 2.

    Latents are tuples (z1, z2). ``elbo``, ``log_marginal`` and ``forward_kl`` by the algebra of normal laws for any size,
    and L_K, ``ciwae`` and ``jackknife`` for any K; other bounds by quadrature where K (dim + upper_dim) is at most four.

    References:
        Sønderby et al. (2016) and Bauer & Mnih (2021) for such models.
    """

    dim: int = 1
    upper_dim: int = 1
    data_dim: int = 1
    points: int = 1
    seed: int = 0
    noise_scale: float = 0.8
    perturbation: float = 0.3

    name = "two-layer-gaussian"
    version = "3"
    summary = "two stochastic layers, linear and Gaussian: ELBO, log p(x), forward KL and L_K exact"
    citations = ("sonderby2016", "bauer2021")
    offers = frozenset({"reparameterizable", "twice_differentiable", "invertible_prior", "data"})

    def validate(self) -> None:
        for field in ("dim", "upper_dim", "data_dim", "points"):
            self.require(getattr(self, field) >= 1, f"{field} must be at least 1, not {getattr(self, field)}")
        self.require(self.seed >= 0, f"seed must not be negative, not {self.seed}")
        require_noise(self)

    @cached_property
    def _setting(self) -> dict[str, dict[str, np.ndarray]]:
        rng = np.random.default_rng(self.seed)
        normal, s = rng.standard_normal, self.noise_scale
        m, W, c = normal(self.upper_dim), normal((self.dim, self.upper_dim)) / self.upper_dim**0.5, normal(self.dim)
        A, b = normal((self.data_dim, self.dim)) / self.dim**0.5, normal(self.data_dim)
        z2 = m + normal((self.points, self.upper_dim))
        z1 = z2 @ W.T + c + s * normal((self.points, self.dim))
        x = z1 @ A.T + b + s * normal((self.points, self.data_dim))
        # Given z1 alone, z2 is normal with precision U; given x alone, z1 is normal with covariance S - G A S.
        U = np.eye(self.upper_dim) + W.T @ W / s**2
        C = np.linalg.solve(U, W.T) / s**2
        e = np.linalg.solve(U, m - W.T @ c / s**2)
        S = W @ W.T + s**2 * np.eye(self.dim)
        G = np.linalg.solve(A @ S @ A.T + s**2 * np.eye(self.data_dim), A @ S).T
        d = W @ m + c - G @ (A @ (W @ m + c) + b)
        v1 = 1 / np.diag(np.linalg.inv(S - G @ A @ S))
        theta = {
            "prior_loc": m,
            "upper_weight": W,
            "upper_bias": c,
            "upper_log_scale": np.log(s),
            "weight": A,
            "bias": b,
            "log_noise_scale": np.log(s),
        }
        phi = {
            "weight": G,
            "bias": d,
            "log_scale": 0.5 * np.log(v1),
            "upper_weight": C,
            "upper_bias": e,
            "upper_log_scale": -0.5 * np.log(np.diag(U)),
        }
        moved = {name: leaf + self.perturbation * normal(leaf.shape) for name, leaf in phi.items()}
        return {"theta": theta, "phi": moved, "data": {"x": x}}

    @cached_property
    def parameters(self) -> Parameters:
        s = self._setting
        return {block: {name: self.tensor(leaf) for name, leaf in s[block].items()} for block in ("theta", "phi")}

    @cached_property
    def data(self) -> Tensor:
        return self.tensor(self._setting["data"]["x"])

    def law(self, parameters: Parameters) -> JointGaussian:
        """The law of ((z1, z2), x) and the guide's of (z1, z2), at any parameters."""
        theta, phi = parameters["theta"], parameters["phi"]
        W, A, B, C = theta["upper_weight"], theta["weight"], phi["weight"], phi["upper_weight"]
        one, n = torch.eye(self.upper_dim).to(W), torch.eye(self.data_dim).to(W)
        noise = torch.eye(self.dim).to(W) * theta["upper_log_scale"].exp()
        scale1, scale2 = torch.diag(phi["log_scale"].exp()), torch.diag(phi["upper_log_scale"].exp())
        lower = self.data @ B.T + phi["bias"]
        return JointGaussian(
            torch.cat([W @ theta["prior_loc"] + theta["upper_bias"], theta["prior_loc"]]),
            _blocks(noise, W, torch.zeros_like(W.T), one),
            torch.cat([A, A.new_zeros(self.data_dim, self.upper_dim)], 1),
            theta["bias"],
            n * theta["log_noise_scale"].exp(),
            self.data,
            torch.cat([lower, lower @ C.T + phi["upper_bias"]], 1),
            _blocks(scale1, torch.zeros_like(C.T), C @ scale1, scale2),
        )

    def guide(self, phi: Block) -> Hierarchical:
        def lower(phi: Block) -> DiagonalGaussian:
            return _gaussian(self.data, phi["weight"], phi["bias"], phi["log_scale"])

        def upper(phi: Block, z1: Tensor) -> DiagonalGaussian:
            return _gaussian(z1, phi["upper_weight"], phi["upper_bias"], phi["upper_log_scale"])

        return Hierarchical(phi, (lower, upper))

    def prior(self, theta: Block) -> Hierarchical:
        def lower(theta: Block, z2: Tensor) -> DiagonalGaussian:
            return _gaussian(z2, theta["upper_weight"], theta["upper_bias"], theta["upper_log_scale"])

        def upper(theta: Block) -> DiagonalGaussian:
            loc = theta["prior_loc"].expand(self.points, self.upper_dim)
            return DiagonalGaussian(loc, loc.new_zeros(()).expand_as(loc))

        return Hierarchical(theta, (lower, upper), top_down=True)

    def log_likelihood(self, theta: Block, z: tuple[Tensor, Tensor]) -> Tensor:
        return _gaussian(z[0], theta["weight"], theta["bias"], theta["log_noise_scale"]).log_prob(self.data)

    def log_joint(self, theta: Block, z: tuple[Tensor, Tensor]) -> Tensor:
        return self.prior(theta).log_prob(z) + self.log_likelihood(theta, z)


def _gaussian(given: Tensor, weight: Tensor, bias: Tensor, log_scale: Tensor) -> DiagonalGaussian:
    loc = given @ weight.mT + bias
    return DiagonalGaussian(loc, log_scale.expand_as(loc))


def _blocks(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    return torch.cat([torch.cat([a, b], 1), torch.cat([c, d], 1)])
