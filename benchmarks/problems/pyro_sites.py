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
from torch.distributions.relaxed_bernoulli import LogitRelaxedBernoulli
from torch.distributions.relaxed_categorical import ExpRelaxedCategorical

from .quantiles import gamma_quantile, poisson_quantile

Law = Literal["normal", "uniform"]
PROPOSALS = 48
"""Of one von Mises draw: at least 0.65 of them are accepted, so none is with probability below 1e-21."""


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
    if (
        "StraightThrough" in type(fn).__name__
        and fn.has_rsample
        and not isinstance(fn, torch.distributions.OneHotCategorical)
    ):
        raise Unsupported(f"{type(fn).__name__} draws one value and differentiates another: its density is of neither")
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
    """Whether a draw is a differentiable function of the parameters, and its program wants it to be one."""
    inner = _inner(fn)
    return not _renounced(fn) and (smooth(inner) if inner is not None else _rule(fn).smooth)


def _renounced(fn: Any) -> bool:
    """Whether ``has_rsample_(False)`` or a class of the program's own takes the path from a law that has one."""
    said = [each.__dict__["has_rsample"] for each in (fn, *type(fn).__mro__) if "has_rsample" in each.__dict__]
    return said[:1] == [False] and True in said


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


def _multivariate_student(fn: Any, eps: Tensor, u: Tensor) -> Tensor:
    chi_square = 2 * gamma_quantile(u, 0.5 * fn.df)
    normal = (fn.scale_tril @ eps[..., None])[..., 0]
    return fn.loc + normal * torch.sqrt(fn.df / chi_square)[..., None]


def _gumbel(u: Tensor) -> Tensor:
    tiny = torch.finfo(u.dtype).tiny
    return -torch.log((-torch.log(u.clamp_min(tiny))).clamp_min(tiny))


def _relaxed_category(fn: Any, u: Tensor) -> Tensor:
    return ((fn.logits + _gumbel(u)) / fn.temperature).log_softmax(-1)


def _relaxed_bit(fn: Any, u: Tensor) -> Tensor:
    return (fn.logits + u.logit(torch.finfo(u.dtype).eps)) / fn.temperature


def _geometric(fn: Any, u: Tensor) -> Tensor:
    return torch.floor(torch.log1p(-u) / torch.log1p(-fn.probs.detach()))


def _trials(fn: Any) -> int:
    """The total count, where all elements share one."""
    counts = torch.as_tensor(fn.total_count)
    if not bool((counts == counts.flatten()[0]).all()):
        raise Unsupported(f"{type(fn).__name__} with different total counts cannot be drawn from explicit noise here")
    return int(counts.flatten()[0])


def _binomial(fn: Any, u: Tensor) -> Tensor:
    return (u < fn.probs.detach()[..., None]).sum(-1).to(fn.probs)


def _negative_binomial(fn: Any, u: Tensor, v: Tensor) -> Tensor:
    mean = gamma_quantile(u, fn.total_count) * fn.logits.exp()
    return poisson_quantile(v, mean)


def _lkj(fn: Any, normal: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """The onion: each row of the factor is a random direction, and its length the root of a beta variable."""
    below = torch.arange(1, fn.dim, dtype=u.dtype, device=u.device)
    a = gamma_quantile(u, (0.5 * below).expand(u.shape))
    b = gamma_quantile(v, fn.concentration[..., None] + 0.5 * (fn.dim - 1 - below))
    square = a / (a + b)  # of all but the first row, whose length is zero
    rows = normal.tril()
    rows = rows / rows.norm(dim=-1, keepdim=True) * square.sqrt()[..., None]
    diagonal = torch.cat([torch.ones_like(square[..., :1]), (b / (a + b)).sqrt()], -1)
    pad = torch.nn.functional.pad
    return pad(rows, (0, 1, 1, 0)) + torch.diag_embed(diagonal)


def _lkj_noise(fn: Any) -> list[Noise]:
    batch, rows = tuple(fn.batch_shape), fn.dim - 1
    return [Noise("normal", (*batch, rows, rows)), *2 * [Noise("uniform", (*batch, rows))]]


def _von_mises(fn: Any, u: Tensor) -> Tensor:
    """The first proposal that is accepted, of wrapped Cauchy ones (Best and Fisher, 1979)."""
    concentration = fn.concentration.detach().double()[..., None]
    tau = 1 + (1 + 4 * concentration**2).sqrt()
    rho = (tau - (2 * tau).sqrt()) / (2 * concentration)
    r = torch.where(concentration < 1e-5, 1 / concentration + concentration, (1 + rho**2) / (2 * rho))
    direction, height, sign = u.double().unbind(-1)
    cosine = torch.cos(torch.pi * direction)
    f = (1 + r * cosine) / (r + cosine)
    c = concentration * (r - f)
    accepted = (c * (2 - c) - height > 0) | ((c / height).log() + 1 - c >= 0)
    first = accepted.to(torch.uint8).argmax(-1, keepdim=True)
    angle = ((sign - 0.5).sign() * f.clamp(-1, 1).acos()).gather(-1, first)[..., 0]
    return ((angle.to(u.dtype) + torch.pi + fn.loc.detach()) % (2 * torch.pi)) - torch.pi


def _mixture_noise(fn: Any) -> list[Noise]:
    return [Noise("uniform", tuple(fn.batch_shape)), *noise_of(fn.component_distribution)]


def _mixture(fn: Any, u: Tensor, *noise: Tensor) -> Tensor:
    components = draw(fn.component_distribution, iter(noise))
    place = len(fn.batch_shape)
    chosen = _categorical(fn.mixture_distribution, u)
    index = chosen.reshape(*fn.batch_shape, 1, *len(fn.event_shape) * (1,))
    return components.gather(place, index.expand(*fn.batch_shape, 1, *fn.event_shape)).squeeze(place)


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
    torch.distributions.Geometric: Rule(_one("uniform"), _geometric, smooth=False),
    torch.distributions.Poisson: Rule(_one("uniform"), lambda fn, u: poisson_quantile(u, fn.rate), smooth=False),
    torch.distributions.Binomial: Rule(
        lambda fn: [Noise("uniform", (*_shape(fn), _trials(fn)))], _binomial, smooth=False
    ),
    torch.distributions.NegativeBinomial: Rule(lambda fn: 2 * _one("uniform")(fn), _negative_binomial, smooth=False),
    torch.distributions.VonMises: Rule(
        lambda fn: [Noise("uniform", (*_shape(fn), PROPOSALS, 3))], _von_mises, smooth=False
    ),
    torch.distributions.LKJCholesky: Rule(_lkj_noise, _lkj),
    torch.distributions.MixtureSameFamily: Rule(_mixture_noise, _mixture, smooth=False),
    dist.MultivariateStudentT: Rule(
        lambda fn: [Noise("normal", _shape(fn)), Noise("uniform", tuple(fn.batch_shape))], _multivariate_student
    ),
    LogitRelaxedBernoulli: Rule(_one("uniform"), _relaxed_bit),
    ExpRelaxedCategorical: Rule(_one("uniform"), _relaxed_category),
    dist.Delta: Rule(lambda fn: [], lambda fn: fn.v.expand(_shape(fn))),
}
"""By class, looked up along the class's own order of inheritance; others with an inverse distribution function use that."""


def bare(fn: Any) -> Any:
    """The distribution inside all wrappers."""
    inner = _inner(fn)
    return fn if inner is None else bare(inner)
