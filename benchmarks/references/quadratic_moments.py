"""Exact variances of importance-weighted gradients in D dimensions, for any number of samples.

For a linear Gaussian model and a diagonal Gaussian guide, derivatives of log w and of log p(x, z) are polynomials of degree
two in the noise. An estimate is the sum over the K samples of w~_k^p f(eps_k), f such a polynomial, and its variance asks for
E[(t r)^p f exp(-t r)] and E[(t r)^2p f^2 exp(-t r)] (`self_normalized`): Mellin-Barnes integrals of E[r^-u f] and E[r^-u f^2]
(`quadratic_form`). Under the tilt r^-u the eta_d are normal with means m_d and variances v_d, which may be complex, so that

    f = a + b'eta + eta'C eta:   E f = a + b'm + m'C m + sum_d C_dd v_d,
                                 E f^2 = (E f)^2 + sum_d (b + 2 C m)_d^2 v_d + 2 sum_de C_de^2 v_d v_e.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .gaussian_iwae import ESTIMATORS
from .linear_gaussian import LinearGaussian
from .quadratic_form import Complex, form_of
from .self_normalized import QuadratureError

Array = NDArray[np.float64]
MOST_POLYNOMIALS = 4000
"""Of all data points together: beyond, minutes."""


@dataclass(frozen=True, eq=False)
class Polynomials:
    """F functions a + b'eta + eta'C eta.

    Arguments:
        constant: a, shape (F,). linear: b, shape (F, D). curvature: C, shape (F, D, D), symmetric.
    """

    constant: Array
    linear: Array
    curvature: Array

    @classmethod
    def of(cls, constant: Array, linear: Array, curvature: Array | None = None) -> Polynomials:
        """From a C that need not be symmetric, or is zero."""
        if curvature is None:
            curvature = np.zeros((*linear.shape, linear.shape[1]))
        return cls(constant, linear, (curvature + curvature.swapaxes(1, 2)) / 2.0)

    def rotated(self, basis: Array) -> Polynomials:
        """The same functions of eta, where these are of eps = U eta."""
        return Polynomials(self.constant, self.linear @ basis, basis.T @ self.curvature @ basis)

    def __call__(self, mean: Complex, spread: Complex) -> Complex:
        """Expectations (U, 2 F), of the functions and then of their squares, at means and variances (U, D) of eta."""
        values, squares = [], []
        for a, b, c in zip(self.constant, self.linear, self.curvature, strict=True):
            bent = mean @ c
            value = a + (mean * (b + bent)).sum(1) + spread @ c.diagonal()
            values.append(value)
            squares.append(value**2 + (spread * (b + 2.0 * bent) ** 2 + 2.0 * (spread @ c**2) * spread).sum(1))
        return np.stack(values + squares, axis=1)


def derivatives(problem: LinearGaussian, point: int, kind: str) -> dict[str, Polynomials]:
    """Derivatives at z = loc + S eps of one data point, as polynomials of eps, by parameter and flat within each.

    Arguments:
        kind: ``total``, of log w with respect to loc and log_scale; ``path``, the same with the density of q held; ``score``,
            of log q at a held z; ``model``, of log p(x, z) with respect to theta.
    """
    x, loc, variance = (each[point] for each in problem._data)
    scale, one = np.sqrt(variance), np.eye(len(loc))
    if kind == "model":
        noise = problem._noise_variance
        rest, slopes = (
            x - problem.bias - problem.weight @ loc,
            -problem.weight * scale,
        )  # x - A z - b = rest + slopes eps
        outer = (len(rest) * len(loc), len(loc))
        across = rest[:, None, None] * np.diag(scale) + loc[:, None] * slopes[:, None, :]
        return {
            "prior_loc": Polynomials.of(loc - problem.prior_loc, np.diag(scale)),
            "bias": Polynomials.of(rest / noise, slopes / noise),
            "weight": Polynomials.of(
                np.outer(rest, loc).ravel() / noise,
                across.reshape(outer) / noise,
                np.einsum("ie,jf->ijef", slopes, np.diag(scale)).reshape(*outer, len(loc)) / noise,
            ),
            "log_noise_scale": Polynomials.of(
                np.array([rest @ rest / noise - len(rest)]),
                2.0 * (rest @ slopes)[None] / noise,
                (slopes.T @ slopes)[None] / noise,
            ),
        }
    pull = problem._pull[point]
    # The derivative along z is constant + slopes eps; along log_scale_d it is scale_d eps_d times that, and a shift.
    constant, slopes, shift = {
        "total": (pull, -problem._precision * scale, 1.0),
        "path": (pull, np.diag(1.0 / scale) - problem._precision * scale, 0.0),
        "score": (np.zeros_like(loc), np.diag(1.0 / scale), -1.0),
    }[kind]
    bent = one[:, :, None] * (scale[:, None] * slopes)[:, None, :]
    return {
        "loc": Polynomials.of(constant, slopes),
        "log_scale": Polynomials.of(np.full(len(loc), shift), np.diag(scale * constant), bent),
    }


@lru_cache(maxsize=256)
def moments(problem: LinearGaussian, estimator: str, num_samples: int) -> dict[str, tuple[Array, Array]]:
    """Mean and variance, per coordinate, of one estimate; theta's as well, sum_k w~_k t_k for all of them.

    Keys loc, log_scale, weight, bias, log_noise_scale, prior_loc, in the shapes of the problem's own. Data points have noise
    of their own, and their estimates are averaged.

    Arguments:
        estimator: ``iwae``, ``stl``, ``dreg``, ``rws`` or ``rws_dreg``. num_samples: K.

    Raises:
        QuadratureError: where the integrals cannot be vouched for, or there are too many.
    """
    terms = {name: [(power, sign) for power, sign, _ in ESTIMATORS[estimator]] for name in ("loc", "log_scale")}
    count = len(problem._data[0])
    found: dict[str, list[Array]] = {}
    for point in range(count):
        functions = derivatives(problem, point, ESTIMATORS[estimator][0][2]) | derivatives(problem, point, "model")
        if count * sum(len(each.constant) for each in functions.values()) > MOST_POLYNOMIALS:
            raise QuadratureError("too many parameters for their variances, one by one")
        for name, each in _of_point(problem, point, functions, terms, num_samples).items():
            found.setdefault(name, []).append(each)
    result = {}
    for name, points in found.items():
        mean, variance = np.array(points).swapaxes(0, 1)  # each (points, F)
        if name not in terms:  # shared by the data points
            mean, variance = mean.sum(0), variance.sum(0)
        shape = np.shape(getattr(problem, name))
        result[name] = (mean / count).reshape(shape), (variance / count**2).reshape(shape)
    return result


def _of_point(
    problem: LinearGaussian,
    point: int,
    functions: dict[str, Polynomials],
    terms: dict[str, list[tuple[int, float]]],
    num_samples: int,
) -> dict[str, tuple[Array, Array]]:
    """Mean and variance (F,) by parameter, of sum_k sum_terms sign w~_k^power f(eps_k); of w~_k f(eps_k) without terms."""
    form, basis = form_of(problem, point)
    parts = functions.values()
    all_ = Polynomials(
        np.concatenate([each.constant for each in parts]),
        np.concatenate([each.linear for each in parts]),
        np.concatenate([each.curvature for each in parts]),
    )
    names = [name for name, each in functions.items() for _ in each.constant]
    single = {power for some in terms.values() for power, _ in some} | {1}
    sums = form.sums(num_samples, all_.rotated(basis), sorted(single | {p + q for p in single for q in single}))
    unit = np.eye(2 * len(names))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for place, name in enumerate(names):
        f, square = unit[place], unit[len(names) + place]
        own = terms.get(name, [(1, 1.0)])
        mean = sum(sign * sums.mean(num_samples, p, f).value for p, sign in own)
        second = sum(s * t * sums.product(num_samples, (p, q), f, f, square).value for p, s in own for q, t in own)
        found[name].append((mean, second - mean**2))
    return {name: tuple(np.array(each).T) for name, each in found.items()}  # type: ignore[misc]
