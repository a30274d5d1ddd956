"""Control variates of the ELBO's gradient: a noisy term of known mean is taken away, and its mean put back.

Notation as in :mod:`estimators.elbo`. In those that use a Gaussian guide z = mu + sigma eps, and p-tilde stands for the
second-order Taylor expansion of log p(x, z) about mu, whose slope there is g and whose Hessian is H:

    p-tilde(z) = log p(x, mu) + g' (z - mu) + 1/2 (z - mu)' H (z - mu),     E p-tilde = log p(x, mu) + 1/2 sum_i H_ii sigma_i^2
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp

from .baselines import log_weights, tracked
from .contract import Block, Gradient, LatentModel, Parameters, Refusal, Weights
from .elbo import ElboEstimator, Reparameterization
from .gaussian import chain, evaluated, expansion
from .learning import adam, parts
from .trees import tree_leaves, tree_map


@dataclass(frozen=True)
class DeltaMethod(ElboEstimator):
    """Score function with the second-order Taylor expansion of log p about q's mean as control variate (delta method).

    .. math:: K^{-1} \\sum_k (\\log w_k - c \\, \\tilde f_k) \\, h_k + c \\, \\nabla_\\phi E_q \\tilde f, \\qquad
              \\tilde f = \\tilde p(z) - \\log \\bar q(z)

    with the second term in closed form: g for mu, H_ii sigma_i + 1 / sigma_i for sigma. With c = 1 the
    variance is zero on any Gaussian target. It overrides :meth:`gradient`, since the expansion is not made of log-weights;
    K samples cost K + D evaluations.

    Arguments:
        num_samples: K.
        coefficient: c; zero is the score function.

    Warning:
        The expansion point is held: it moves with phi in neither term.

    References:
        Paisley, Blei & Jordan (2012); Mohamed, Rosca, Figurnov & Mnih (2020), section 7.3.

    Example:
        >>> DeltaMethod(num_samples=2, coefficient=0.5)
        DeltaMethod(num_samples=2, coefficient=0.5)
    """

    coefficient: float = 1.0

    name = "delta-method"
    citations = ("paisley2012", "mohamed2020")
    needs = frozenset({"gaussian", "twice_differentiable"})

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        at = evaluated(model, parameters, noise)
        there, slope, hessian = expansion(model, parameters["theta"], at.loc)
        moved = at.z - at.loc
        taylor = there + (moved * slope).sum(-1) + 0.5 * (moved * _times(hessian, moved)).sum(-1)
        log_q = model.guide(parameters["phi"]).log_prob(at.z)
        signal = (at.log_w - self.coefficient * (taylor - log_q))[..., None]
        diagonal = hessian.diagonal(dim1=-2, dim2=-1)
        of_loc = (signal * noise / at.scale).mean(0) + self.coefficient * slope
        of_scale = (signal * (noise.square() - 1) / at.scale).mean(0)
        of_scale = of_scale + self.coefficient * (diagonal * at.scale + 1 / at.scale)
        return Gradient(at.log_w.mean(), at.theta, chain(model, parameters["phi"], of_loc, of_scale))


@dataclass(frozen=True)
class ScoreCoefficient(ElboEstimator):
    """Total derivative plus a multiple of the score: every mixture of reparameterisation and sticking the landing.

    .. math:: K^{-1} \\sum_k P_k + (c - 1) \\, h_k

    c = 0 is ``reparameterization``, c = 1 ``sticking-the-landing``. The c of least variance is -E<g, h> / E<h, h>, g the
    total derivative; by default it is learnt from earlier draws, as the ratio of these two averages.

    Arguments:
        num_samples: K.
        coefficient: c, or where it is learnt what it is before anything is known.
        learnt: whether c is learnt.

    Warning:
        With c from the same draw the estimate is biased.

    References:
        Roeder, Wu & Duvenaud (2017); Geffner & Domke (2018).

    Example:
        >>> ScoreCoefficient(num_samples=2, coefficient=1.0).weights(torch.zeros(2))
        Weights(path=0.5, score=0.0, model=0.5)
    """

    coefficient: float = 0.5
    learnt: bool = True

    name = "score-coefficient"
    citations = ("roeder2017", "geffner2018")
    needs = frozenset({"reparameterizable"})
    warm_up = 200

    def weights(self, log_w: Tensor) -> Weights:
        c: Tensor | float = self.coefficient
        if self.state is not None:
            c = -self.state["product"] / self.state["square"]
        return Weights(path=1 / self.num_samples, score=(c - 1) / self.num_samples, model=1 / self.num_samples)

    def adapted(self, model: LatentModel, parameters: Parameters, noise: Any) -> ScoreCoefficient:
        if not self.learnt:
            return self
        total = Reparameterization(self.num_samples).gradient(model, parameters, noise).phi
        phi = parameters["phi"]
        z = tree_map(torch.Tensor.detach, model.guide(phi).transform(noise))
        score = grad(lambda phi: model.guide(phi).log_prob(z).mean())(phi)
        product = torch.stack([(total[name] * score[name]).sum() for name in phi]).sum()
        square = torch.stack([score[name].square().sum() for name in phi]).sum()
        if self.state is not None:
            product, square = self.state["product"] + product, self.state["square"] + square
        return replace(self, state={"product": product, "square": square})


@dataclass(frozen=True)
class HessianControlVariate(ElboEstimator):
    """Reparameterisation minus the gradient of the linearised slope, plus that gradient's mean (Miller et al.).

    .. math:: \\hat g_\\mu = \\overline{\\nabla \\log p(x, z_k) - H \\sigma \\epsilon_k}, \\qquad
              \\hat g_\\sigma = \\overline{\\epsilon_k (\\nabla \\log p(x, z_k) - g - H \\sigma \\epsilon_k)}
              + \\mathrm{diag}(H) \\sigma + \\sigma^{-1}

    averages over K samples. The variance is zero on any Gaussian target. ``hessian`` says what stands for H:

    - ``full``: all of it; D evaluations more.
    - ``diagonal``: its diagonal, in every place. No cheaper by exact derivatives, and noisier where H is not diagonal.
    - ``product``: for mu the products H (sigma eps_k), one for each sample; for sigma in place of H a diagonal matrix,
      estimated from the other samples by E [eps_i (H sigma eps)_i] = H_ii sigma_i. 2K evaluations whatever D; K >= 2, and
      it takes some ten samples before sigma gains.

    Arguments:
        num_samples: K.
        hessian: ``full``, ``diagonal`` or ``product``.

    Warning:
        A diagonal estimated from all samples, the one that it meets included, biases sigma by a part 2 / K of H's share.
        The mean of eps (H sigma eps) over the *others* is no control variate at all: summed over the samples it cancels.

    References:
        Miller, Foti, D'Amour & Adams (2017).

    Example:
        >>> HessianControlVariate(num_samples=4, hessian="product").hessian
        'product'
    """

    hessian: str = "full"

    name = "hessian-control-variate"
    citations = ("miller2017",)
    needs = frozenset({"gaussian", "twice_differentiable"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.hessian not in ("full", "diagonal", "product"):
            raise Refusal(f"{self.label()} takes hessian=full, diagonal or product, not {self.hessian!r}")
        if self.hessian == "product" and self.num_samples < 2:
            raise Refusal(f"{self.label()} with hessian=product needs num_samples >= 2, not {self.num_samples}")

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        at = evaluated(model, parameters, noise)
        moved = at.scale * noise
        if self.hessian == "product":
            slope, along = _products(model, parameters["theta"], at.loc, moved)
            diagonal = self._of_others(noise * along) / at.scale  # (K, *batch, D)
            linear, across = along, diagonal * moved
        else:
            _, slope, matrix = expansion(model, parameters["theta"], at.loc)
            diagonal = matrix.diagonal(dim1=-2, dim2=-1)
            linear = _times(matrix, moved) if self.hessian == "full" else diagonal * moved
            across = linear
        of_loc = (at.slope - linear).mean(0)
        of_scale = (noise * (at.slope - slope - across) + diagonal * at.scale).mean(0) + 1 / at.scale
        return Gradient(at.log_w.mean(), at.theta, chain(model, parameters["phi"], of_loc, of_scale))

    def _of_others(self, x: Tensor) -> Tensor:
        """For each sample the mean over the others, ``(K, ...)``."""
        return (x.sum(0) - x) / (self.num_samples - 1)


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    """Products of ``(*batch, D, D)`` and ``(K, *batch, D)``."""
    return (matrix @ vector[..., None])[..., 0]


def _products(model: LatentModel, theta: Block, loc: Tensor, along: Tensor) -> tuple[Tensor, Tensor]:
    """The slope of log p(x, z) at ``loc (*batch, D)``, and the Hessian there times each of ``along (K, *batch, D)``."""

    def slope(z: Tensor) -> Tensor:
        return grad(lambda z: model.log_joint(theta, z).sum())(z)

    slopes, products = jvp(slope, (loc.expand_as(along).contiguous(),), (along,))  # type: ignore[misc]
    return slopes[0], products


@dataclass(frozen=True)
class LAX(ElboEstimator):
    """Score function with a learnt surrogate as control variate, put back by reparameterisation.

    .. math:: K^{-1} \\sum_k (\\log w_k - c_\\psi(z_k)) \\, h_k + \\nabla_\\phi c_\\psi(T_\\phi(\\epsilon_k))

    c is a parabola in each latent of each data point, with a constant. Its coefficients take steps of Adam down the squared
    norm of the whole phi-gradient, one estimate at a time: its mean does not depend on psi, so that is its variance. Unbiased
    for whatever psi the draw finds; before anything is learnt c = 0. With c = log w it would be sticking the landing.

    Arguments:
        num_samples: K.
        rate: step size, in units of the standard deviation of log w; it falls after fifty steps.
        decay: of the moving averages that give this unit, and the level that c starts from.

    Warning:
        psi must not learn from the draw that it meets, and the second term is the path's derivative alone: psi is held.
        There is no parabola for minibatches: what is learnt belongs to the data points one by one.

    References:
        Grathwohl, Choi, Wu, Roeder & Duvenaud (2018), section 3.

    Example:
        >>> sorted(LAX.needs)
        ['reparameterizable']
    """

    rate: float = 0.05
    decay: float = 0.99

    name = "lax"
    citations = ("grathwohl2018",)
    needs = frozenset({"reparameterizable"})
    warm_up = 500

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        theta, phi = parameters["theta"], parameters["phi"]
        held = tree_map(torch.Tensor.detach, model.guide(phi).transform(noise))
        log_p, pull_back = vjp(lambda theta: model.log_joint(theta, held), theta)  # type: ignore[misc]
        (of_theta,) = pull_back(torch.full_like(log_p, 1 / log_p.numel()))
        log_w = log_p - model.guide(phi).log_prob(held)
        return Gradient(log_w.mean(), of_theta, _surrogate_gradient(model, phi, noise, log_w, self.state))

    def adapted(self, model: LatentModel, parameters: Parameters, noise: Any) -> LAX:
        log_w, phi = log_weights(model, parameters, noise), parameters["phi"]
        state = self.state or _level(model, phi, noise, log_w)
        psi, memory = parts(state)
        mean, deviation = tracked(self.state, log_w, self.decay)
        units = {**state, "mean": mean, "deviation": deviation}

        def size(psi: Block) -> Tensor:
            found = _surrogate_gradient(model, phi, noise, log_w, {**units, **psi})
            return torch.stack([leaf.square().sum() for leaf in found.values()]).sum()

        psi, memory = adam(psi, memory, grad(size)(psi), self.rate, settling=50)
        return replace(self, state={**units, **psi, **memory})


def _surrogate_gradient(model: LatentModel, phi: Block, noise: Any, log_w: Tensor, state: Block | None) -> Block:
    """The phi-gradient of LAX, differentiable in ``psi.*`` of the state."""

    def surrogate(phi: Block) -> Tensor:
        guide = model.guide(phi)
        z = guide.transform(noise)
        held = tree_map(torch.Tensor.detach, z)
        score = guide.log_prob(held)
        if state is None:
            return (log_w * score).mean()
        return ((log_w - _parabola(state, held, log_w)) * score + _parabola(state, z, log_w)).mean()

    return grad(surrogate)(phi)


def _parabola(state: Block, z: Any, log_w: Tensor) -> Tensor:
    """c, ``(K, *batch)``: of the latents of each data point, in units of log w."""
    total = state["psi.constant"]
    for i, layer in enumerate(tree_leaves(z)):
        u = layer - state[f"centre.{i}"]
        bend = state[f"psi.linear.{i}"] * u + state[f"psi.square.{i}"] * u.square()
        total = total + bend.flatten(log_w.ndim).sum(-1) if bend.ndim > log_w.ndim else total + bend
    return state["mean"] + state["deviation"] * total


def _level(model: LatentModel, phi: Block, noise: Any, log_w: Tensor) -> Block:
    """The first state: a level line, and where the first latents stand, for its bends to be measured from."""
    state = {"psi.constant": torch.zeros_like(log_w[0])}
    for i, layer in enumerate(tree_leaves(model.guide(phi).transform(noise))):
        flat = torch.zeros_like(layer[0])
        state |= {f"psi.linear.{i}": flat, f"psi.square.{i}": flat, f"centre.{i}": layer.detach().mean(0)}
    return state
