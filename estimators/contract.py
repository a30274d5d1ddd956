"""The contract: what a model, a guide and an estimator are, and nothing else.

Shapes, used everywhere: ``K`` samples per estimate, ``*batch`` data points, ``*event`` one latent. A latent ``z`` is
``(K, *batch, *event)``, or a tuple or dict of such tensors where there are several stochastic layers; log-weights are
``(K, *batch)``. Objectives are *averaged* over the data points and maximised.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor

Block: TypeAlias = dict[str, Tensor]
"""Named parameters: the leaves of one block."""

Parameters: TypeAlias = dict[str, Block]
"""``{"theta": model parameters, "phi": guide parameters}``."""

Latent: TypeAlias = Any
"""One tensor ``(..., *batch, *event)``, or a tuple or dict of them: one for each stochastic layer."""

BLOCKS = ("theta", "phi")
TargetName = Literal[
    "elbo", "iwae", "log_marginal", "forward_kl", "renyi", "ciwae", "jackknife", "f_divergence", "tvo",
    "tvo_upper", "relaxed_elbo", "sleep",
]  # fmt: skip
MULTI_SAMPLE = frozenset({"iwae", "renyi", "ciwae", "jackknife"})
"""Targets that are another quantity for every number of samples."""
NEEDS = {
    "reparameterizable": "z must be a differentiable function of noise and phi",
    "twice_differentiable": "log p(x, z) must have continuous first derivatives in z (no ReLU kinks)",
    "gaussian": "the guide must be a diagonal Gaussian",
    "analytic_kl": "the model must give its prior and its likelihood apart, with a closed-form KL(q || prior)",
    "invertible_prior": "the model must give its prior and its likelihood apart, and the prior's noise be a function of z",
    "bernoulli": "the guide must be a product of Bernoulli variables",
    "categorical": "the guide must be a product of categorical variables",
    "enumerable": "the guide must have so few states that they can be summed over",
    "factorised": "the guide must be a product of discrete variables with few values each",
    "relaxable": "log p(x, z) must be defined and differentiable between the discrete values of z",
    "data": "the model must give its data as a matrix, one row for each data point",
    "simulable": "the model must draw data of its own, and give its guide for them",
}


class Refusal(ValueError):
    """An estimator and a model that cannot work together; the message says why."""


@dataclass(frozen=True)
class Target:
    """The quantity whose gradient a block of the estimate is compared with, and what is claimed about it.

    ``elbo``: E_q log w. ``iwae``: E log (1/K) sum_k w_k, for ``num_samples`` K. ``log_marginal``: log p(x).
    ``forward_kl``: -KL(p(z|x) || q), a target of phi alone. ``renyi``: E (1 - a)^-1 log (1/K) sum_k w_k^(1 - a) for
    ``setting`` a. ``ciwae``: b ELBO + (1 - b) L_K for ``setting`` b. ``jackknife``: the jackknifed bound of order
    ``setting`` from K samples. ``f_divergence``: E_q F(log w), F named by ``setting``. ``tvo``, ``tvo_upper``: the left and
    the right Riemann sum of the thermodynamic integral over ``setting`` intervals. ``relaxed_elbo``: the ELBO with z relaxed at temperature
    ``setting``. ``sleep``: E_p(x) E_p(z|x) log q(z|x), over data of the model, a target of phi alone.
    """

    name: TargetName
    num_samples: int | None = None
    unbiased: bool = True
    setting: float | str | None = None

    def __str__(self) -> str:
        text = self.name if self.num_samples is None else f"{self.name}-{self.num_samples}"
        return text if self.setting is None else f"{text}({self.setting})"


class Weights(NamedTuple):
    """Coefficients of the three per-sample gradients, each ``(K, *batch)``, a number, or ``None`` for an absent term.

    ``path`` multiplies P_k, the path derivative of log p(x, z_k) - log q(z_k) with the density of q held constant;
    ``score`` multiplies h_k, the gradient of log q_phi(z_k) with z_k held constant; ``model`` multiplies t_k, the
    theta-gradient of log p_theta(x, z_k).
    """

    path: Tensor | float | None
    score: Tensor | float | None
    model: Tensor | float | None


class TotalDerivative(Weights):
    """Weights whose score is minus their path: those of a total derivative. Saying so saves the surrogate two passes."""

    __slots__ = ()

    @classmethod
    def of(cls, path: Tensor | float, model: Tensor | float | None) -> TotalDerivative:
        """``(path, -path, model)``."""
        return cls(path, -path, model)

    def _replace(self, **changes: Any) -> Weights:  # type: ignore[override]
        """Plain weights: with one of its parts changed it need not be a total derivative any more."""
        return Weights(*self)._replace(**changes)


class Gradient(NamedTuple):
    """One estimate: of the objective's value (a scalar; NaN where the estimator has none), and of each block's gradient."""

    value: Tensor
    theta: Block
    phi: Block


class Draw(NamedTuple):
    """Noise of those replicates that share one number of samples: ``noise`` is ``(rows, K, ...)``, ``rows`` their places."""

    rows: Tensor
    noise: Any


class Guide(ABC):
    """A density q_phi(z | x), built from phi, that can be sampled by transforming explicit noise."""

    reparameterizable: ClassVar[bool]
    noise_law: ClassVar[Literal["normal", "uniform", "own"]] = "normal"
    """Of each number in the noise, all independent: standard normal, uniform on (0, 1), or one that schemes cannot shape."""

    @abstractmethod
    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Any:
        """Base randomness of ``shape`` draws: ``(*shape, *batch, *event)``, free of phi."""

    @abstractmethod
    def transform(self, noise: Any) -> Latent:
        """Latents ``(..., *batch, *event)`` from noise; differentiable in phi where ``reparameterizable``."""

    @abstractmethod
    def log_prob(self, z: Latent) -> Tensor:
        """log q(z | x), ``(..., *batch)``."""

    def log_prob_transformed(self, noise: Any) -> Tensor:
        """log q at ``transform(noise)``, whose phi-gradient is the total derivative; guides override it where it is simple."""
        return self.log_prob(self.transform(noise))

    @abstractmethod
    def detach(self) -> Guide:
        """The same density with phi held constant (q-bar): gradients flow to z alone.

        Where a deeper layer's density is conditioned on a shallower layer's z, that dependence stays live.
        """

    def inverse(self, z: Latent) -> Any:
        """The noise that :meth:`transform` makes ``z`` of, for priors of models that offer ``invertible_prior``."""
        raise NotImplementedError(f"{type(self).__name__} does not give the noise of its latents")

    def states(self) -> Latent:
        """Every value of one data point's latent, ``(S, *event)``, for guides of models that offer ``enumerable``."""
        raise NotImplementedError(f"{type(self).__name__} has no list of states")

    def simulation_noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Any:
        """Base randomness of ``shape`` draws of latents *and* data, for guides of models that offer ``simulable``."""
        raise NotImplementedError(f"{type(self).__name__} does not say what its model's data are drawn from")

    def edges(self) -> Tensor:
        """Where z jumps as its uniform noise rises, ``(E, *batch, *noise)``, and the mirror images of these places."""
        raise NotImplementedError(f"{type(self).__name__} has no edges")


class LatentModel(ABC):
    """log p_theta(x, z) with its data x, and the guide that approximates p_theta(z | x)."""

    offers: frozenset[str] = frozenset()
    """Which of :data:`NEEDS` this model meets."""
    lacking: Mapping[str, str] = MappingProxyType({})
    """Of a need that is not met: why, in place of the general sentence."""

    @abstractmethod
    def log_joint(self, theta: Block, z: Latent) -> Tensor:
        """log p(x, z), ``(..., *batch)`` for z of shape ``(..., *batch, *event)``, any leading dimensions."""

    @abstractmethod
    def guide(self, phi: Block) -> Guide:
        """q_phi(. | x) for the model's data."""

    def objects(self, estimator: Estimator) -> str | None:
        """Why an estimator would be wrong on this model although it has what it needs, or ``None``."""
        return None

    def prior(self, theta: Block) -> Guide:
        """p_theta(z), for models that offer ``analytic_kl`` or ``invertible_prior``."""
        raise NotImplementedError(f"{type(self).__name__} does not give its prior apart")

    def log_likelihood(self, theta: Block, z: Latent) -> Tensor:
        """log p_theta(x | z), shaped as :meth:`log_joint`, for models that offer it with their prior."""
        raise NotImplementedError(f"{type(self).__name__} does not give its likelihood apart")

    @property
    def data(self) -> Tensor:
        """x, ``(points, data_dim)``, for models that offer ``data``."""
        raise NotImplementedError(f"{type(self).__name__} does not give its data")

    def simulate(self, theta: Block, noise: Any) -> tuple[Latent, LatentModel]:
        """Latents ``(..., *batch, *event)`` from the prior, and this model with data drawn given them (``simulable``).

        ``noise`` is what the guide's :meth:`Guide.simulation_noise` gave; leading dimensions of it are leading dimensions
        of the latents and of the data.
        """
        raise NotImplementedError(f"{type(self).__name__} does not draw data")


@dataclass(frozen=True)
class Estimator(ABC):
    """A Monte Carlo estimator of a gradient, in ascent direction, from ``num_samples`` samples of the guide.

    Most estimators are one rule, :meth:`weights`. One that does not fit overrides :meth:`gradient`, and says so. What an
    estimator learns as it goes (a baseline, a control variate) is its ``state``: :meth:`adapted` gives a new estimator that
    has seen one more draw, and no estimator ever changes.

    Example:
        >>> import torch
        >>> from estimators import Estimator, Target, Weights
        >>> class Mine(Estimator):
        ...     "Reparameterisation with the density of q held constant."
        ...     needs = frozenset({"reparameterizable"})
        ...     @property
        ...     def targets(self):
        ...         return {"theta": Target("elbo"), "phi": Target("elbo")}
        ...     def weights(self, log_w):
        ...         K = self.num_samples
        ...         return Weights(path=1 / K, score=None, model=1 / K)
        >>> Mine(num_samples=2).weights(torch.zeros(2)).path
        0.5
    """

    num_samples: int = 1
    state: Block | None = field(default=None, kw_only=True, repr=False, compare=False)

    name: ClassVar[str] = ""
    family: ClassVar[str] = ""
    needs: ClassVar[frozenset[str]] = frozenset()
    citations: ClassVar[tuple[str, ...]] = ()
    min_num_samples: ClassVar[int] = 1
    version: ClassVar[str] = "1"
    random_cost: ClassVar[bool] = False
    """Whether replicates draw different numbers of samples."""
    warm_up: ClassVar[int] = 0
    """Draws that it learns from before it is measured, with its state frozen from then on; 0 for those that learn nothing."""
    snr_slopes: ClassVar[dict[str, float]] = {}
    """Theory's exponents of the signal-to-noise ratio in K, by block, where the weights have the moments it needs."""
    snr_tail_ratios: ClassVar[dict[str, float]] = {}
    """By block: the rho that a Gaussian guide must exceed for those moments to exist; without an entry, any will do."""

    def __post_init__(self) -> None:
        if self.num_samples < self.min_num_samples:
            raise Refusal(f"{self.label()} needs num_samples >= {self.min_num_samples}, not {self.num_samples}")

    @classmethod
    def label(cls) -> str:
        """The registry name, or the class's own where it has none."""
        return cls.name or cls.__name__

    @classmethod
    def usual_num_samples(cls) -> int:
        """The number of samples to show this estimator with, where nobody says which."""
        return max(2, cls.min_num_samples)

    @property
    @abstractmethod
    def targets(self) -> dict[str, Target | None]:
        """What each block (``theta``, ``phi``) estimates the gradient of; ``None`` where it estimates none."""

    @property
    def total_derivative(self) -> bool:
        """Whether q enters through its value at transformed noise alone: as a rule of :class:`TotalDerivative` weights does."""
        try:
            return isinstance(self.weights(torch.zeros(self.num_samples, 1)), TotalDerivative)
        except NotImplementedError:
            return False

    @property
    def variance_exists(self) -> bool:
        """``False`` where no model gives the estimate a finite variance; ``True`` leaves it to the model, and to the data."""
        return True

    def snr_slope(self, block: str, tail_ratio: float | None) -> float | None:
        """Theory's exponent of the signal-to-noise ratio in K at a model's rho; ``None`` where theory says nothing."""
        needed = self.snr_tail_ratios.get(block)
        if needed is not None and (tail_ratio is None or tail_ratio <= needed):
            return None
        return self.snr_slopes.get(block)

    def weights(self, log_w: Tensor) -> Weights:
        """The rule: coefficients from log-weights ``(K, *batch)``, along the first axis."""
        raise NotImplementedError(f"{self.label()} is no weights rule: it overrides gradient()")

    def value(self, log_w: Tensor) -> Tensor | None:
        """An estimate ``(*batch)`` of the value of theta's target, or ``None`` where the estimator gives none."""
        return None

    def draws(self, guide: Guide, replicates: int, generator: torch.Generator) -> list[Draw]:
        """Noise for ``replicates`` independent estimates, grouped by their number of samples."""
        rows = torch.arange(replicates)
        return [Draw(rows, guide.noise((replicates, self.num_samples), generator))]

    def adapted(self, model: LatentModel, parameters: Parameters, noise: Any) -> Estimator:
        """This estimator after it has learnt from one draw, to be used on the next: never on the same one, which biases."""
        return self

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        """One estimate of value and gradient from the noise of one replicate."""
        from .surrogate import weighted_gradient

        return weighted_gradient(self, model, parameters, noise)

    def refuses(self, model: LatentModel) -> str | None:
        """Why this estimator cannot work on this model, or ``None``."""
        missing = sorted(self.needs - model.offers)
        if not missing:
            reason = model.objects(self)
            return None if reason is None else f"{self.label()}: {reason}"
        return f"{self.label()} needs " + "; ".join(
            f"{need} ({model.lacking.get(need) or NEEDS.get(need, 'unknown to this model')})" for need in missing
        )
