"""Closed forms of the linear Gaussian model with a diagonal Gaussian guide.

    z ~ N(prior_loc, I),  x|z ~ N(A z + b, s^2 I),  q(z|x) = N(loc, V),  V = diag(v),  v = exp(2 log_scale)

Everything is averaged over the N data points; gradients wrt per-point loc and log_scale are divided by N. Ascent sign:
gradients of the ELBO, of log p(x) and of -KL(p(z|x) || q). Variances are those of one estimate with independent noise
for each data point. Notation: P = I + A'A/s^2 the posterior precision, m the posterior mean, e = x - A loc - b.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

TARGETS = ("elbo", "log_marginal", "forward_kl")
ESTIMATORS = (
    "reparameterization",
    "sticking_the_landing",
    "analytic_kl",
    "score_function",
    "leave_one_out",
    "bonnet_price",
)


@dataclass(frozen=True, eq=False)
class LinearGaussian:
    """A linear Gaussian model, its data and a mean-field guide.

    Arguments:
        weight: A, shape (n, d).
        bias: b, shape (n,).
        log_noise_scale: log s.
        prior_loc: shape (d,), or None for zero.
        x: data, shape (n,) or (N, n).
        loc, log_scale: the guide, shape (d,) or (N, d), as x.
    """

    weight: Array
    bias: Array
    log_noise_scale: float
    prior_loc: Array | None
    x: Array
    loc: Array
    log_scale: Array

    def __post_init__(self) -> None:
        n, d = np.shape(self.weight)
        prior = np.zeros(d) if self.prior_loc is None else self.prior_loc
        object.__setattr__(self, "prior_loc", prior)
        for name in ("weight", "bias", "prior_loc", "x", "loc", "log_scale"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), dtype=np.float64))
        batch = self.x.shape[:-1]
        expected = {"bias": (n,), "prior_loc": (d,), "x": (*batch, n), "loc": (*batch, d), "log_scale": (*batch, d)}
        for name, shape in expected.items():
            if getattr(self, name).shape != shape or len(batch) > 1:
                raise ValueError(
                    f"{name} has shape {getattr(self, name).shape}, expected {shape} with at most one batch axis"
                )

    # The model, with a leading data axis of length N (one when x is a vector).

    @cached_property
    def _noise_variance(self) -> float:
        return float(np.exp(2.0 * self.log_noise_scale))

    @cached_property
    def _data(self) -> tuple[Array, Array, Array]:
        """x (N, n), loc (N, d), v (N, d)."""
        return np.atleast_2d(self.x), np.atleast_2d(self.loc), np.exp(2.0 * np.atleast_2d(self.log_scale))

    @cached_property
    def _precision(self) -> Array:
        return np.eye(self.weight.shape[1]) + self.weight.T @ self.weight / self._noise_variance

    # All that the posterior and log p(x) need, in the singular basis of A, A = U diag(a) W': with noise a hundred thousand times
    # smaller than the data, solving with P or with A A' + s^2 I would lose half of the digits.

    @cached_property
    def _basis(self) -> tuple[Array, Array, Array, Array]:
        """U (n, n), the variances s^2 + a^2 of x - b - A prior_loc along it (n,), a and W (d,), (d, d)."""
        left, singular, right = np.linalg.svd(self.weight)
        n, d = self.weight.shape
        spectrum = [np.append(singular, np.zeros(size - len(singular))) for size in (n, d)]
        return left, self._noise_variance + spectrum[0] ** 2, spectrum[1], right.T

    @cached_property
    def _along(self) -> Array:
        """x - b - A prior_loc along U, shape (N, n)."""
        return (self._data[0] - self.bias - self.weight @ self.prior_loc) @ self._basis[0]

    @cached_property
    def _solved(self) -> Array:
        """(A A' + s^2 I)^-1 (x - b - A prior_loc), shape (N, n)."""
        left, variances, _, _ = self._basis
        return self._along / variances @ left.T

    @cached_property
    def _posterior_mean(self) -> Array:
        """m = prior_loc + A'(A A' + s^2 I)^-1 (x - b - A prior_loc), shape (N, d)."""
        _, variances, singular, right = self._basis
        k = min(self.weight.shape)
        return self.prior_loc + self._along[:, :k] / variances[:k] * singular[:k] @ right[:, :k].T

    @cached_property
    def _covariance(self) -> Array:
        """P^-1, shape (d, d)."""
        _, _, singular, right = self._basis
        return right * (self._noise_variance / (self._noise_variance + singular**2)) @ right.T

    @cached_property
    def _log_det(self) -> float:
        """log det P."""
        return float(np.log1p(self._basis[2] ** 2 / self._noise_variance).sum())

    @cached_property
    def _pull(self) -> Array:
        """d log p(x, z)/dz = -P (z - m) at loc, from the residuals there, shape (N, d)."""
        x, loc, _ = self._data
        e = x - loc @ self.weight.T - self.bias
        return e @ self.weight / self._noise_variance - (loc - self.prior_loc)

    @cached_property
    def _log_marginals(self) -> Array:
        """log p(x), shape (N,)."""
        variances = self._basis[1]
        squares = np.sum(self._along**2 / variances, axis=1)
        return -0.5 * (len(self.bias) * np.log(2.0 * np.pi) + np.log(variances).sum() + squares)

    def posterior(self) -> tuple[Array, Array]:
        """Mean, shape as loc, and precision P (d, d), the same for all data points."""
        return self._posterior_mean.reshape(self.loc.shape), self._precision

    def log_marginal(self) -> float:
        """Mean over the data of log p(x) = log N(x; A prior_loc + b, A A' + s^2 I)."""
        return float(self._log_marginals.mean())

    def elbo(self) -> float:
        """Mean over the data of E_q log p(x, z) - log q(z|x), written out (not as log p - KL)."""
        x, loc, v = self._data
        n, s2 = len(self.bias), self._noise_variance
        squares = np.sum((x - loc @ self.weight.T - self.bias) ** 2, axis=1) + v @ np.sum(self.weight**2, axis=0)
        kl = 0.5 * np.sum((loc - self.prior_loc) ** 2 + v - 1.0 - np.log(v), axis=1)
        return float(np.mean(-0.5 * n * np.log(2.0 * np.pi * s2) - squares / (2.0 * s2) - kl))

    def forward_kl(self) -> float:
        """Mean over the data of -KL(p(z|x) || q), never positive."""
        _, loc, v = self._data
        spread = np.diag(self._covariance) + (loc - self._posterior_mean) ** 2
        return float(np.mean(-0.5 * (np.sum(np.log(v) + spread / v - 1.0, axis=1) + self._log_det)))

    def tail_ratio(self) -> float:
        """rho, smallest eigenvalue of V^1/2 P V^1/2 over the data: E_q r^a is finite iff rho > (a-1)/a."""
        scales = np.sqrt(self._data[2])
        return float(min(np.linalg.eigvalsh(s[:, None] * self._precision * s)[0] for s in scales))

    def gradient(self, target: str) -> dict[str, float | Array]:
        """Value and gradients of a target of `TARGETS`.

        Keys: value, weight (n, d), bias (n,), log_noise_scale, prior_loc (d,), loc and log_scale (shape of loc). The
        phi gradients of log_marginal are zero; forward_kl, a target of the guide alone, has no theta gradients.
        """
        if target not in TARGETS:
            raise ValueError(f"unknown target {target!r}; known: {', '.join(TARGETS)}")
        return getattr(self, f"_{target}_gradient")()

    def _elbo_gradient(self) -> dict[str, float | Array]:
        x, loc, v = self._data
        a, s2, count = self.weight, self._noise_variance, len(x)
        e = x - loc @ a.T - self.bias
        squares = np.sum(e**2, axis=1) + v @ np.sum(a**2, axis=0)
        return {
            "value": self.elbo(),
            "weight": (e.T @ loc / count - a * v.mean(axis=0)) / s2,
            "bias": e.mean(axis=0) / s2,
            "log_noise_scale": float(np.mean(squares) / s2 - len(self.bias)),
            "prior_loc": (loc - self.prior_loc).mean(axis=0),
            "loc": (self._pull / count).reshape(self.loc.shape),
            "log_scale": ((1.0 - v * np.diag(self._precision)) / count).reshape(self.loc.shape),
        }

    def _log_marginal_gradient(self) -> dict[str, float | Array]:
        solved, s2 = self._solved, self._noise_variance
        left, variances, singular, right = self._basis
        k = min(self.weight.shape)
        return {
            "value": self.log_marginal(),
            # E[(x - A z - b) z'] / s^2 under the posterior; the latter part is A P^-1 / s^2
            "weight": solved.T @ self._posterior_mean / len(solved)
            - left[:, :k] * (singular[:k] / variances[:k]) @ right[:, :k].T,
            "bias": solved.mean(axis=0),
            "log_noise_scale": float(np.mean(np.sum(s2 * solved**2, axis=1)) - np.sum(s2 / variances)),
            "prior_loc": (self._posterior_mean - self.prior_loc).mean(axis=0),
            "loc": np.zeros_like(self.loc),
            "log_scale": np.zeros_like(self.loc),
        }

    def _forward_kl_gradient(self) -> dict[str, float | Array]:
        _, loc, v = self._data
        delta = loc - self._posterior_mean
        spread = np.diag(self._covariance) + delta**2
        count, shape = len(loc), self.loc.shape
        return {
            "value": self.forward_kl(),
            "loc": (-delta / v / count).reshape(shape),
            "log_scale": ((spread / v - 1.0) / count).reshape(shape),
        }

    def variance(self, estimator: str, num_samples: int = 1) -> dict[str, Array]:
        """Exact variance, per coordinate, of an ELBO gradient estimator; keys loc and log_scale, of the shape of loc.

        Arguments:
            estimator: one of `ESTIMATORS`. The average of K independent one-sample estimates, except leave_one_out:
                sum_k (log w_k - mean log w) h_k / (K-1). bonnet_price: loc as sticking the landing, log_scale
                1 + v d^2 log p/dz^2, which is constant here.
            num_samples: K; at least 2 for leave_one_out.

        With log w = C0 + c'eps + eps'M eps, the leave-one-out estimate is the sample covariance of log w and the score,
        whose variance is (mu22 + mu20 mu02/(K-1) - mu11^2 (K-2)/(K-1))/K.
        """
        if estimator not in ESTIMATORS:
            raise ValueError(f"unknown estimator {estimator!r}; known: {', '.join(ESTIMATORS)}")
        if num_samples < (2 if estimator == "leave_one_out" else 1):
            raise ValueError(f"{estimator} needs more samples than {num_samples}")
        if estimator in ("score_function", "leave_one_out"):
            loc, log_scale = self._score_variance(num_samples if estimator == "leave_one_out" else None)
        else:
            loc, log_scale = self._path_variance(estimator)
        if estimator != "leave_one_out":
            loc, log_scale = loc / num_samples, log_scale / num_samples
        count = len(loc)  # the data mean divides each point's gradient by N
        return {
            "loc": loc.reshape(self.loc.shape) / count**2,
            "log_scale": log_scale.reshape(self.loc.shape) / count**2,
        }

    def _path_variance(self, estimator: str) -> tuple[Array, Array]:
        """Variances (N, d) of g_loc = c - H S eps and g_log_scale = S eps g_loc + constant, S = V^1/2.

        H = P for the total derivative, P - V^-1 for sticking the landing, A'A/s^2 with the KL in closed form.
        """
        x, loc, v = self._data
        curvature = np.broadcast_to(self._precision, (len(loc), *self._precision.shape)).copy()
        c = self._pull
        diagonal = np.arange(loc.shape[1])
        if estimator in ("sticking_the_landing", "bonnet_price"):
            curvature[:, diagonal, diagonal] -= 1.0 / v
        elif estimator == "analytic_kl":
            curvature[:, diagonal, diagonal] -= 1.0
            c = (x - loc @ self.weight.T - self.bias) @ self.weight / self._noise_variance
        var_loc = np.einsum("nij,nj->ni", curvature**2, v)
        if estimator == "bonnet_price":
            return var_loc, np.zeros_like(v)
        own = curvature[:, diagonal, diagonal] ** 2 * v
        return var_loc, v * (c**2 + var_loc + own)

    def _score_variance(self, num_samples: int | None) -> tuple[Array, Array]:
        """Variances (N, d) of one score-function estimate (None) or of leave-one-out with K samples."""
        _, loc, v = self._data
        scale, delta = np.sqrt(v), loc - self._posterior_mean
        c = scale * self._pull
        m = 0.5 * (np.eye(loc.shape[1]) - scale[:, :, None] * self._precision * scale[:, None, :])
        diagonal = np.einsum("nii->ni", m)
        row = np.sum(m**2, axis=2)
        spread = (np.sum(c**2, axis=1) + 2.0 * np.sum(row, axis=1))[:, None]  # Var log w
        centre = np.zeros_like(spread)  # E log w, which leave-one-out removes
        if num_samples is None:
            quadratic = -np.sum(delta * self._pull, axis=1)
            constant = self._log_marginals + 0.5 * (self._log_det + np.sum(np.log(v), axis=1) - quadratic)
            centre = (constant + np.sum(diagonal, axis=1))[:, None]
        square = centre**2 + spread  # E l^2; next E l^2 (eps_d^2 - 1) and E l^2 He_4(eps_d), by Stein's identity
        second = 2.0 * (c**2 + 4.0 * row) + 4.0 * diagonal * centre
        fourth = 24.0 * diagonal**2
        moments = {
            "loc": (square + second, c, 1.0),
            "log_scale": (fourth + 4.0 * second + 2.0 * square, 2.0 * diagonal, 2.0),
        }
        result = []
        for mu22, mu11, mu02 in moments.values():
            if num_samples is None:
                result.append(mu22 - mu11**2)
            else:
                k = num_samples
                result.append((mu22 + spread * mu02 / (k - 1) - mu11**2 * (k - 2) / (k - 1)) / k)
        return result[0] / v, result[1]

    def model_variance(self, num_samples: int = 1) -> dict[str, float | Array]:
        """Exact variance, per coordinate, of the theta gradient (1/K) sum_k grad log p(x, z_k), K = num_samples.

        Keys weight (n, d), bias (n,), log_noise_scale, prior_loc (d,). With x - A z - b = e - A S eps.
        """
        x, loc, v = self._data
        a, s2 = self.weight, self._noise_variance
        e = x - loc @ a.T - self.bias
        spread = v @ (a**2).T  # variance of (A z)_i, shape (N, n)
        product = (e**2 + spread)[:, :, None] * v[:, None, :] + loc[:, None, :] ** 2 * spread[:, :, None]
        product += (a * v[:, None, :]) ** 2 - 2.0 * e[:, :, None] * loc[:, None, :] * a * v[:, None, :]
        along = (e @ a) ** 2 * v  # e'A V A'e = sum of this over d
        gram = a.T @ a
        square = np.einsum("ni,ij,nj->n", v, gram**2, v)  # tr (A V A')^2
        scale = len(x) ** 2 * num_samples
        return {
            "weight": product.sum(axis=0) / s2**2 / scale,
            "bias": spread.sum(axis=0) / s2**2 / scale,
            "log_noise_scale": float(np.sum(4.0 * along.sum(axis=1) + 2.0 * square) / s2**2 / scale),
            "prior_loc": v.sum(axis=0) / scale,
        }
