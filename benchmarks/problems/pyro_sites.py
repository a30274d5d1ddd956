"""Draws of Pyro's distributions as functions of explicit noise, site by site.

Pyro and torch draw in place from a global generator. Here each distribution says which noise it takes, uniform or standard
normal and free of its parameters, and how its value follows from it, differentiably where that is possible.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal, NamedTuple

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent, TransformedDistribution

Law = Literal["normal", "uniform"]
NEWTON_STEPS = 30
"""Of the Gamma quantile: it doubles its digits in each of the last few."""


class Noise(NamedTuple):
    """One tensor of independent noise."""

    law: Law
    shape: tuple[int, ...]


class Unsupported(ValueError):
    """A distribution that cannot be drawn from explicit noise here; the message names it."""


class Rule(NamedTuple):
    """Which noise a distribution takes, and its value; ``smooth`` where the value is differentiable in the parameters."""

    noise: Callable[[Any], list[Noise]]
    value: Callable[..., Tensor]
    smooth: bool = True


def noise_of(fn: Any) -> list[Noise]:
    """The noise that one draw of a distribution takes.

    Raises:
        Unsupported: for a distribution that has no rule here.
    """
    inner = _inner(fn)
    return noise_of(inner) if inner is not None else _rule(fn).noise(fn)


def draw(fn: Any, noise: Iterator[Tensor]) -> Tensor:
    """One value, of ``batch_shape + event_shape``, from the next tensors of ``noise``."""
    if isinstance(fn, TransformedDistribution):
        x = draw(fn.base_dist, noise)
        for transform in fn.transforms:
            x = transform(x)
        return x
    inner = _inner(fn)
    if inner is not None:
        return draw(inner, noise)
    rule = _rule(fn)
    return rule.value(fn, *(next(noise) for _ in rule.noise(fn)))


def smooth(fn: Any) -> bool:
    """Whether a draw is a differentiable function of the parameters."""
    inner = _inner(fn)
    return smooth(inner) if inner is not None else _rule(fn).smooth


def _inner(fn: Any) -> Any | None:
    """The distribution inside a wrapper that changes shape, mask or space alone."""
    if isinstance(fn, TransformedDistribution | Independent | dist.MaskedDistribution):
        return fn.base_dist
    if isinstance(fn, dist.torch_distribution.ExpandedDistribution):
        return fn.base_dist.expand(fn.batch_shape)
    return None


def _rule(fn: Any) -> Rule:
    for kind in type(fn).__mro__:
        if kind in RULES:
            return RULES[kind]
    if hasattr(fn, "icdf") and type(fn).icdf is not torch.distributions.Distribution.icdf:
        return Rule(_one("uniform"), lambda fn, u: fn.icdf(u))
    raise Unsupported(f"{type(fn).__name__} cannot be drawn from explicit noise here")


def _one(law: Law) -> Callable[[Any], list[Noise]]:
    return lambda fn: [Noise(law, _shape(fn))]


def _shape(fn: Any) -> tuple[int, ...]:
    return tuple(fn.batch_shape + fn.event_shape)


def _low_rank(fn: Any) -> list[Noise]:
    shape = _shape(fn)
    return [Noise("normal", (*shape[:-1], fn.cov_factor.shape[-1])), Noise("normal", shape)]


def _categorical(fn: Any, u: Tensor) -> Tensor:
    edges = fn.probs.detach().cumsum(-1)[..., :-1]
    return (u[..., None] >= edges).sum(-1)


def _one_hot(fn: Any, u: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(_categorical(fn, u), fn.event_shape[-1]).to(fn.probs)


def _beta(fn: Any, u: Tensor, v: Tensor) -> Tensor:
    # concentration1 goes with the value, concentration0 with its complement.
    a, b = gamma_quantile(u, fn.concentration1), gamma_quantile(v, fn.concentration0)
    return a / (a + b)


def _dirichlet(fn: Any, u: Tensor) -> Tensor:
    parts = gamma_quantile(u, fn.concentration)
    return parts / parts.sum(-1, keepdim=True)


def _student(fn: Any, eps: Tensor, u: Tensor) -> Tensor:
    chi_square = 2 * gamma_quantile(u, 0.5 * fn.df)
    return fn.loc + fn.scale * eps * torch.sqrt(fn.df / chi_square)


def gamma_quantile(u: Tensor, concentration: Tensor) -> Tensor:
    """The Gamma(concentration, 1) quantile of ``u``, and its first derivative in ``concentration``.

    Newton's method on the logarithm of the quantile; the derivative is -(dF/da) / f, with dF/da by a central difference of
    the regularised incomplete gamma function in double precision, good to nine digits.

    Example:
        >>> u = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
        >>> y = gamma_quantile(u, torch.tensor(1.0, dtype=torch.float64))
        >>> torch.allclose(y, -torch.log1p(-u))
        True
    """
    dtype = u.dtype
    a = concentration.detach().double().expand(u.shape)
    u = u.detach().double().clamp(1e-300, 1 - 1e-16)
    wilson = a * (1 - 1 / (9 * a) + torch.special.ndtri(u) / (3 * a.sqrt())) ** 3
    small = torch.exp((u.log() + torch.lgamma(a + 1)) / a)
    t = torch.where((wilson > 0.1 * a) & (a > 0.5), wilson, small).clamp_min(1e-290).log()
    for _ in range(NEWTON_STEPS):
        y = t.exp()
        log_density = a * t - y - torch.lgamma(a)  # of t
        below = torch.special.gammainc(a, y) - u
        t = t - (below * torch.exp(-log_density.clamp_min(-600.0))).clamp(-1.0, 1.0)
    y = t.exp()
    step = 1e-5 * a
    slope = (torch.special.gammainc(a + step, y) - torch.special.gammainc(a - step, y)) / (2 * step)
    derivative = -slope * torch.exp(torch.lgamma(a) + y - (a - 1) * t)
    y, derivative = y.to(dtype), derivative.to(dtype)
    return y + derivative * (concentration - concentration.detach())


RULES: dict[type, Rule] = {
    torch.distributions.Normal: Rule(_one("normal"), lambda fn, eps: fn.loc + fn.scale * eps),
    torch.distributions.MultivariateNormal: Rule(
        _one("normal"), lambda fn, eps: fn.loc + (fn._unbroadcasted_scale_tril @ eps[..., None])[..., 0]
    ),
    torch.distributions.LowRankMultivariateNormal: Rule(
        _low_rank,
        lambda fn, eps_w, eps_d: (
            fn.loc
            + (fn._unbroadcasted_cov_factor @ eps_w[..., None])[..., 0]
            + fn._unbroadcasted_cov_diag.sqrt() * eps_d
        ),
    ),
    torch.distributions.Gamma: Rule(_one("uniform"), lambda fn, u: gamma_quantile(u, fn.concentration) / fn.rate),
    torch.distributions.Beta: Rule(lambda fn: 2 * _one("uniform")(fn), _beta),
    torch.distributions.Dirichlet: Rule(_one("uniform"), _dirichlet),
    torch.distributions.StudentT: Rule(lambda fn: [*_one("normal")(fn), *_one("uniform")(fn)], _student),
    torch.distributions.Bernoulli: Rule(
        _one("uniform"), lambda fn, u: (u < fn.probs.detach()).to(fn.probs), smooth=False
    ),
    torch.distributions.Categorical: Rule(_one("uniform"), _categorical, smooth=False),
    torch.distributions.OneHotCategorical: Rule(
        lambda fn: [Noise("uniform", tuple(fn.batch_shape))], _one_hot, smooth=False
    ),
    dist.Delta: Rule(lambda fn: [], lambda fn: fn.v.expand(_shape(fn))),
}
"""By class, looked up along the class's own order of inheritance; others with an inverse distribution function use that."""


def bare(fn: Any) -> Any:
    """The distribution inside all wrappers."""
    inner = _inner(fn)
    return fn if inner is None else bare(inner)
