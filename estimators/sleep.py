"""Sleep updates of phi: q is fitted to latents and data that the model itself draws.

What is drawn is part of the noise, ``{"wake": of the guide, "sleep": of latents and data}``, and passes through
``LatentModel.simulate``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from .contract import Block, Draw, Estimator, Gradient, Guide, LatentModel, Parameters, Refusal, Target, Weights
from .surrogate import weighted_gradient
from .trees import tree_map


@dataclass(frozen=True)
class Sleep(Estimator):
    """Abstract: theta is unbiased for L_K; phi takes a share of the sleep gradient beside its own weights rule.

    No weights rule alone, because the sleep gradient belongs to other data: it overrides :meth:`gradient`.
    """

    family = "wake-sleep"
    needs = frozenset({"simulable"})

    @property
    def asleep(self) -> float:
        """The share of the sleep gradient in phi."""
        raise NotImplementedError

    def value(self, log_w: Tensor) -> Tensor:
        return log_w.logsumexp(0) - math.log(self.num_samples)

    def draws(self, guide: Guide, replicates: int, generator: torch.Generator) -> list[Draw]:
        shape = (replicates, self.num_samples)
        noise = {"wake": guide.noise(shape, generator), "sleep": guide.simulation_noise(shape, generator)}
        return [Draw(torch.arange(replicates), noise)]

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        awake = weighted_gradient(self, model, parameters, noise["wake"])
        z, dreamt = model.simulate(parameters["theta"], noise["sleep"])

        def fit(phi: Block) -> Tensor:
            return dreamt.guide(phi).log_prob(z).mean()

        phi = tree_map(lambda wake, sleep: wake + self.asleep * sleep, awake.phi, grad(fit)(parameters["phi"]))
        return awake._replace(phi=phi)


@dataclass(frozen=True)
class SleepPhi(Sleep):
    """Sleep-phi: the guide learns from the model's own draws, where the latents are known.

    .. math:: K^{-1} \\sum_k \\nabla_\\phi \\log q_\\phi(z_k | \\tilde x_k), \\quad z_k \\sim p_\\theta(z), \\;
              \\tilde x_k \\sim p_\\theta(x | z_k) \\quad (\\phi), \\qquad \\sum_k \\tilde w_k t_k \\quad (\\theta)

    K draws for each data point, none of which sees the data; theta is the wake update from K other samples, of the guide.

    Warning:
        Unbiased for the forward divergence averaged over data of the *model*, E_p(x) KL(p(z|x) || q), not over the data:
        early in training the two are far apart. The guide must be a function of x.

    References:
        Hinton, Dayan, Frey & Neal (1995); Bornschein & Bengio (2015); Le et al. (2019).

    Example:
        >>> {block: str(target) for block, target in SleepPhi(num_samples=4).targets.items()}
        {'theta': 'iwae-4', 'phi': 'sleep'}
    """

    name = "sleep-phi"
    citations = ("hinton1995", "bornschein2015", "le2019")
    snr_slopes = {"theta": 0.5, "phi": 0.5}
    snr_tail_ratios = {"theta": 0.5}

    @property
    def asleep(self) -> float:
        return 1.0

    @property
    def targets(self) -> dict[str, Target | None]:
        return {"theta": Target("iwae", self.num_samples), "phi": Target("sleep")}

    def weights(self, log_w: Tensor) -> Weights:
        return Weights(path=None, score=None, model=log_w.softmax(0))


@dataclass(frozen=True)
class Insomnia(Sleep):
    """Insomnia: phi takes a mixture of the wake and the sleep update.

    .. math:: \\gamma \\sum_k \\tilde w_k h_k + (1 - \\gamma) K^{-1} \\sum_k \\nabla_\\phi \\log q_\\phi(z'_k | \\tilde x_k)
              \\quad (\\phi), \\qquad \\sum_k \\tilde w_k t_k \\quad (\\theta)

    with z_k drawn by the guide and (z'_k, x~_k) by the model.

    Arguments:
        num_samples: K, of each kind.
        insomnia: gamma, the share of the wake update, between 0 (``sleep-phi``) and 1 (``reweighted-wake-sleep``).

    Warning:
        For gamma > 0 its target is declared to be the forward divergence on the data, for which it is biased twice: by
        self-normalisation, and by the share that is asleep.

    References:
        Bingham et al. (2019), where the mixture comes from; Le et al. (2019).

    Example:
        >>> Insomnia(num_samples=2).weights(torch.tensor([0.0, 0.0])).score
        tensor([0.2500, 0.2500])
        >>> str(Insomnia().targets["phi"]), Insomnia().targets["phi"].unbiased
        ('forward_kl', False)
    """

    insomnia: float = 0.5

    name = "insomnia"
    citations = ("bingham2019", "le2019")
    snr_slopes = {"theta": 0.5, "phi": 0.5}
    snr_tail_ratios = {"theta": 0.5, "phi": 0.5}

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.insomnia <= 1:
            raise Refusal(f"{self.label()} takes insomnia between 0 and 1, not {self.insomnia}")

    @property
    def asleep(self) -> float:
        return 1 - self.insomnia

    @property
    def targets(self) -> dict[str, Target | None]:
        phi = Target("forward_kl", unbiased=False) if self.insomnia else Target("sleep")
        return {"theta": Target("iwae", self.num_samples), "phi": phi}

    def weights(self, log_w: Tensor) -> Weights:
        w = log_w.softmax(0)
        return Weights(path=None, score=self.insomnia * w, model=w)
