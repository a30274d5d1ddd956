"""Gradients through relaxed discrete latents: as control variates, which leave no bias, and in place of them, which do.

Notation of :mod:`estimators.concrete`: z = logits + noise, b = H(z) the latent, s_T(z) the relaxed one at temperature T, and z~
what z is given b, drawn again. f(.) = log p(x, .) - log q(.), where log q is continued linearly between the values of b.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, vjp

from .baselines import tracked
from .concrete import Relaxation, relaxation_of
from .contract import Block, Draw, Gradient, Guide, LatentModel, Parameters, Refusal, Target
from .elbo import ElboEstimator
from .learning import adam, parts


@dataclass(frozen=True)
class Relaxing(ElboEstimator):
    """Abstract: what draws the noise of a relaxation."""

    family = "relaxations"
    needs = frozenset({"relaxable"})

    def draws(self, guide: Guide, replicates: int, generator: torch.Generator) -> list[Draw]:
        noise = relaxation_of(guide).noise((replicates, self.num_samples), generator)
        return [Draw(torch.arange(replicates), noise)]


@dataclass(frozen=True)
class Tempered(Relaxing):
    """Abstract: what relaxes at a temperature."""

    temperature: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.temperature < math.inf:
            raise Refusal(f"{self.label()} takes a finite temperature above 0, not {self.temperature}")


@dataclass(frozen=True)
class Conditioned(Tempered):
    """Abstract: the score function, less a function c of z~ that meets the score, with its mean put back by two paths."""

    eta: float = 1.0
    coupled: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not math.isfinite(self.eta):
            raise Refusal(f"{self.label()} takes a finite eta, not {self.eta}")

    def draws(self, guide: Guide, replicates: int, generator: torch.Generator) -> list[Draw]:
        (draw,) = super().draws(guide, replicates, generator)
        if self.coupled:
            return [draw]
        again = relaxation_of(guide).noise((replicates, self.num_samples), generator)
        return [Draw(draw.rows, (draw.noise, again))]

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        theta, phi = parameters["theta"], parameters["phi"]
        b = self.latents(model, phi, noise)
        log_p, pull_back = vjp(lambda theta: model.log_joint(theta, b), theta)  # type: ignore[misc]
        (of_theta,) = pull_back(torch.full_like(log_p, 1 / log_p.numel()))
        log_w = log_p - model.guide(phi).log_prob(b)
        return Gradient(log_w.mean(), of_theta, self.phi_gradient(model, parameters, noise, log_w, self.state))

    def latents(self, model: LatentModel, phi: Block, noise: Any) -> Tensor:
        """b, ``(K, *batch, *event)``, as numbers alone."""
        relaxation = relaxation_of(model.guide(phi))
        return relaxation.hard(relaxation.perturbed(noise if self.coupled else noise[0])).detach()

    def phi_gradient(
        self, model: LatentModel, parameters: Parameters, noise: Any, log_w: Tensor, state: Block | None
    ) -> Block:
        """The phi-gradient, differentiable in ``psi.*`` of the state."""

        def surrogate(phi: Block) -> Tensor:
            guide = model.guide(phi)
            relaxation, density = relaxation_of(guide), guide.detach()

            def control(z: Tensor) -> Tensor:
                return self.control(relaxation, lambda s: _log_w(model, parameters, density, s), z, state)

            z = relaxation.perturbed(noise if self.coupled else noise[0])
            b = relaxation.hard(z).detach()
            if self.coupled:
                moved = relaxation.logits - relaxation.logits.detach()
                again = z.detach() + relaxation.conditional_slope(z.detach()) * moved
            else:
                again = relaxation.conditional(b, noise[1])
            value, slope_again = _with_slope(control, again.detach())
            slope = slope_again if self.coupled else _with_slope(control, z.detach())[1]
            paths = (slope * z - slope_again * again).sum() / log_w.numel()
            return ((log_w.detach() - value) * guide.log_prob(b)).mean() + paths

        return grad(surrogate)(parameters["phi"])

    @abstractmethod
    def control(self, relaxation: Relaxation, f: Callable[[Tensor], Tensor], z: Tensor, state: Block | None) -> Tensor:
        """c(z), ``(K, *batch)``."""


@dataclass(frozen=True)
class Rebar(Conditioned):
    """Score function with the relaxed f, given b, as control variate, put back through the relaxation (REBAR).

    .. math:: K^{-1} \\sum_k (f(b_k) - \\eta f(s_T(\\tilde z_k))) \\, h_k
              + \\eta \\nabla_\\phi f(s_T(z_k)) - \\eta \\nabla_\\phi f(s_T(\\tilde z_k))

    where both gradients are through z and z~ alone, at fixed noise. Coupled, z~ is the same number as z and two evaluations of
    log p(x, .) do for a sample; else z~ is drawn anew, given b, and it takes three. theta and the value are taken at b.

    Arguments:
        num_samples: K.
        temperature: T. eta: the control variate's coefficient; zero is the score function.
        coupled: whether z~ = z, which is no less uniform given b. An evaluation fewer; either may be the less noisy.

    Warning:
        z~ moves with phi at fixed b: without that path the estimate is biased. And z~ needs noise of its own, or the noise
        that b leaves of z; the noise of z itself, used once more, is not uniform given b.

    References:
        Tucker, Mnih, Maddison, Lawson & Sohl-Dickstein (2017).

    Example:
        >>> Rebar(num_samples=2, eta=0.8)
        Rebar(num_samples=2, temperature=0.5, eta=0.8, coupled=True)
    """

    name = "rebar"
    citations = ("tucker2017",)

    def control(self, relaxation: Relaxation, f: Callable[[Tensor], Tensor], z: Tensor, state: Block | None) -> Tensor:
        return self.eta * f(relaxation.soft(z, self.temperature))


@dataclass(frozen=True)
class Relax(Conditioned):
    """REBAR with a learnt surrogate: its coefficient, its temperature, and a parabola in each relaxed latent (RELAX).

    .. math:: K^{-1} \\sum_k (f(b_k) - c_\\psi(\\tilde z_k)) \\, h_k
              + \\nabla_\\phi c_\\psi(z_k) - \\nabla_\\phi c_\\psi(\\tilde z_k), \\qquad
              c_\\psi(z) = \\eta f(s_T(z)) + a + \\sum_d (l_d s_d + m_d s_d^2), \\; s = s_1(z)

    The parabola's coefficients belong to the data points one by one, in units of the standard deviation of log w. psi takes
    steps of Adam down the squared norm of the whole phi-gradient, one estimate at a time: its mean does not depend on psi, so
    that is its variance. Unbiased for any psi; before anything is learnt it is ``rebar``.

    Arguments:
        num_samples: K.
        temperature: T to start from. eta: to start from.
        coupled: as for ``rebar``.
        rate: step size; it falls after fifty steps.
        decay: of the moving average that gives the unit.

    Warning:
        psi must not learn from the draw that it meets. c of z may meet the score in place of c of z~, which has one law with it
        beside b; c of b may not, and no path may be left out. What is learnt belongs to the data points one by one, so there
        is none for minibatches: take ``rebar``.

    References:
        Grathwohl, Choi, Wu, Roeder & Duvenaud (2018), section 3.

    Example:
        >>> Relax(num_samples=2).warm_up
        200
    """

    rate: float = 0.05
    decay: float = 0.99

    name = "relax"
    citations = ("grathwohl2018", "tucker2017")
    warm_up = 200

    def control(self, relaxation: Relaxation, f: Callable[[Tensor], Tensor], z: Tensor, state: Block | None) -> Tensor:
        if state is None:
            return self.eta * f(relaxation.soft(z, self.temperature))
        relaxed = f(relaxation.soft(z, state["psi.log_temperature"].exp()))
        s = relaxation.soft(z, 1.0)
        bends = (state["psi.linear"] * s + state["psi.square"] * s.square()).flatten(relaxed.ndim).sum(-1)
        return state["psi.eta"] * relaxed + state["deviation"] * (state["psi.constant"] + bends)

    def adapted(self, model: LatentModel, parameters: Parameters, noise: Any) -> Relax:
        with torch.no_grad():
            b = self.latents(model, parameters["phi"], noise)
            log_w = _log_w(model, parameters, model.guide(parameters["phi"]), b)
        state = self.state or self._start(b, log_w)
        psi, memory = parts(state)
        mean, deviation = tracked(self.state, log_w, self.decay)
        units = {**state, "mean": mean, "deviation": deviation}

        def size(psi: Block) -> Tensor:
            found = self.phi_gradient(model, parameters, noise, log_w, {**units, **psi})
            return torch.stack([leaf.square().sum() for leaf in found.values()]).sum()

        psi, memory = adam(psi, memory, grad(size)(psi), self.rate, settling=50)
        return replace(self, state={**units, **psi, **memory})

    def _start(self, b: Tensor, log_w: Tensor) -> Block:
        """REBAR's control variate, and nothing added to it."""
        flat = torch.zeros_like(b[0])
        return {
            "psi.eta": log_w.new_full((), self.eta),
            "psi.log_temperature": log_w.new_full((), math.log(self.temperature)),
            "psi.constant": torch.zeros_like(log_w[0]),
            "psi.linear": flat,
            "psi.square": flat,
        }


@dataclass(frozen=True)
class GumbelSoftmax(Tempered):
    """Reparameterisation of the relaxed latent (Gumbel-softmax, concrete distribution).

    .. math:: K^{-1} \\sum_k \\nabla f(s_T(z_k))

    with the total derivative in theta and phi. Its target is the relaxed objective E f(s_T(z)), log q in which is still the
    discrete density, continued linearly: for that it is unbiased, at every temperature.

    Arguments:
        num_samples: K.
        temperature: T.

    Warning:
        For the ELBO it is biased, in both blocks and in the value: f between the values of b is not f of the model. The bias
        falls with T while the variance grows. With the density of the *relaxed* law in f's place the target is another one.

    References:
        Maddison, Mnih & Teh (2017); Jang, Gu & Poole (2017).

    Example:
        >>> str(GumbelSoftmax(temperature=0.3).targets["phi"])
        'relaxed_elbo(0.3)'
    """

    name = "gumbel-softmax"
    citations = ("maddison2017", "jang2017")

    @property
    def targets(self) -> dict[str, Target | None]:
        target = Target("relaxed_elbo", setting=self.temperature)
        return {"theta": target, "phi": target}

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        def objective(parameters: Parameters) -> tuple[Tensor, Tensor]:
            guide = model.guide(parameters["phi"])
            relaxation = relaxation_of(guide)
            s = relaxation.soft(relaxation.perturbed(noise), self.temperature)
            value = _log_w(model, parameters, guide, s).mean()
            return value, value.detach()

        gradient, value = grad(objective, has_aux=True)(parameters)
        return Gradient(value, gradient["theta"], gradient["phi"])


@dataclass(frozen=True)
class StraightThrough(Relaxing):
    """Slope of f at the discrete latent, passed on as if the latent were its mean (straight-through).

    .. math:: K^{-1} \\sum_k \\nabla_b f(b_k) \\cdot \\nabla_\\phi E_q b

    theta is unbiased: it is taken at b. phi is exact where f is linear in each variable, and biased for the ELBO elsewhere;
    of which objective it is the gradient instead, if of any, is not known.

    Arguments:
        num_samples: K.

    Warning:
        f's slope at a value of b is not its difference between the values. Two ways to write one model, equal at every b, may
        have any slopes there, and so any estimate.

    References:
        Bengio, Leonard & Courville (2013).

    Example:
        >>> StraightThrough().targets["theta"].unbiased, StraightThrough().targets["phi"].unbiased
        (True, False)
    """

    name = "straight-through"
    citations = ("bengio2013",)

    @property
    def targets(self) -> dict[str, Target | None]:
        return {"theta": Target("elbo"), "phi": Target("elbo", unbiased=False)}

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        return _through(model, parameters, noise, lambda relaxation, z: relaxation.mean().expand_as(z))


@dataclass(frozen=True)
class StraightThroughGumbel(Tempered):
    """Slope of f at the discrete latent, passed on through the relaxed one of the same noise (straight-through Gumbel).

    .. math:: K^{-1} \\sum_k \\nabla_b f(b_k) \\cdot \\nabla_\\phi s_T(z_k)

    theta is unbiased: it is taken at b. phi is biased for the ELBO, even where f is linear: E s_T(z) is not E b.

    Arguments:
        num_samples: K.
        temperature: T.

    Warning:
        As for ``straight-through``.

    References:
        Jang, Gu & Poole (2017), section 2.2.

    Example:
        >>> StraightThroughGumbel(temperature=0.3).targets["phi"].unbiased
        False
    """

    name = "straight-through-gumbel"
    citations = ("jang2017",)

    @property
    def targets(self) -> dict[str, Target | None]:
        return {"theta": Target("elbo"), "phi": Target("elbo", unbiased=False)}

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        return _through(model, parameters, noise, lambda relaxation, z: relaxation.soft(z, self.temperature))


def _through(
    model: LatentModel, parameters: Parameters, noise: Any, passed: Callable[[Relaxation, Tensor], Tensor]
) -> Gradient:
    """The gradient at b = H(z), of which only the derivative in phi is that of ``passed``; log q is held."""

    def surrogate(parameters: Parameters) -> tuple[Tensor, Tensor]:
        guide = model.guide(parameters["phi"])
        relaxation = relaxation_of(guide)
        z = relaxation.perturbed(noise)
        soft = passed(relaxation, z)
        b = relaxation.hard(z).detach() + (soft - soft.detach())
        value = _log_w(model, parameters, guide.detach(), b).mean()
        return value, value.detach()

    gradient, value = grad(surrogate, has_aux=True)(parameters)
    return Gradient(value, gradient["theta"], gradient["phi"])


def _with_slope(function: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """Values ``(K, *batch)`` of a function of each sample and data point, and its slopes ``(K, *batch, *event)``."""
    value, pull_back = vjp(function, z)  # type: ignore[misc]
    (slope,) = pull_back(torch.ones_like(value))
    return value, slope


def _log_w(model: LatentModel, parameters: Parameters, density: Guide, z: Tensor) -> Tensor:
    """f(z), ``(K, *batch)``."""
    return model.log_joint(parameters["theta"], z) - density.log_prob(z)
