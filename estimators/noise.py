"""Noise schemes: any estimator, averaged over copies whose noise is drawn jointly.

The average of C estimates has the expectation of one, whatever ties their noise together, as long as the noise of each is
what it would be alone. So a scheme is free to choose *how* the copies differ: they mirror each other, or fill the space of
the noise evenly. The copies of one estimate depend on each other; standard errors are over replicates, never over copies.

What is coupled is the whole noise of a whole estimate. The K samples inside one multi-sample bound stay independent:
E log mean w over samples that depend on each other is another bound than L_K.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from .contract import Draw, Estimator, Gradient, Guide, LatentModel, Parameters, Refusal, Target
from .guides import DiagonalGaussian
from .trees import tree_leaves, tree_map

_BITS = SobolEngine.MAXBIT


@dataclass(frozen=True)
class NoiseScheme(Estimator):
    """Abstract: the mean of ``copies`` estimates of the estimator ``of``, whose noise :meth:`couple` draws together.

    What it estimates, needs and costs per copy is the wrapped estimator's: on an instance ``needs``, ``min_num_samples``,
    ``warm_up``, ``snr_slopes`` and ``citations`` are of the pair, on the class of the pair with ``of``'s default.
    """

    of: str | Estimator = "reparameterization"

    family = "noise"
    needs = frozenset({"reparameterizable"})  # of the default
    snr_slopes = {"theta": 0.5, "phi": 0.5}

    def __post_init__(self) -> None:
        told = self.of if isinstance(self.of, str) else self.of.label()
        object.__setattr__(self, "of", _copy(self.label(), self.of, self.num_samples))
        one = self.wrapped
        facts = {
            "needs": one.needs,
            "min_num_samples": one.min_num_samples,
            "warm_up": one.warm_up,
            "snr_slopes": one.snr_slopes,
            "snr_tail_ratios": one.snr_tail_ratios,
            "citations": tuple(dict.fromkeys((*type(self).citations, *one.citations))),
        }
        for fact, value in facts.items():
            object.__setattr__(self, fact, value)
        super().__post_init__()
        if one.random_cost:
            raise Refusal(f"{self.label()} cannot wrap {told}: its estimates draw different numbers of samples")
        if not _guide_noise_alone(one):
            raise Refusal(f"{self.label()} cannot wrap {told}: it draws noise of its own beside the guide's")

    @property
    def wrapped(self) -> Estimator:
        """One copy, with what was learnt."""
        assert isinstance(self.of, Estimator)  # from the start on
        return replace(self.of, state=self.state)

    @property
    @abstractmethod
    def size(self) -> int:
        """Copies in one estimate."""

    @property
    def targets(self) -> dict[str, Target | None]:
        return self.wrapped.targets

    @property
    def total_derivative(self) -> bool:
        return self.wrapped.total_derivative

    @property
    def variance_exists(self) -> bool:
        return self.wrapped.variance_exists

    @abstractmethod
    def couple(self, noise: Tensor, uniform: bool, generator: torch.Generator) -> Tensor:
        """Noise ``(rows, copies, n)`` in place of ``noise (rows, n)``, independent numbers, uniform or else normal."""

    def draws(self, guide: Guide, replicates: int, generator: torch.Generator) -> list[Draw]:
        if guide.noise_law == "own":
            raise Refusal(f"{self.label()} needs normal or uniform noise; {type(guide).__name__} draws its own kind")
        rows, noise = self.wrapped.draws(guide, replicates, generator)[0]
        leaves = tree_leaves(noise)
        flat = torch.cat([leaf.flatten(1) for leaf in leaves], 1)
        coupled = self.couple(flat, guide.noise_law == "uniform", generator).to(flat.dtype)
        parts = iter(torch.split(coupled, [leaf[0].numel() for leaf in leaves], 2))
        return [Draw(rows, tree_map(lambda leaf: next(parts).reshape(len(leaf), self.size, *leaf.shape[1:]), noise))]

    def adapted(self, model: LatentModel, parameters: Parameters, noise: Any) -> Estimator:
        wrapped = self.wrapped
        for copy in range(self.size):
            wrapped = wrapped.adapted(model, parameters, tree_map(lambda leaf, copy=copy: leaf[copy], noise))
        return replace(self, state=wrapped.state)

    def gradient(self, model: LatentModel, parameters: Parameters, noise: Any) -> Gradient:
        # One by one and not by vmap: whoever counts evaluations of the model then counts those of every copy.
        wrapped = self.wrapped
        copies = [
            wrapped.gradient(model, parameters, tree_map(lambda leaf, copy=copy: leaf[copy], noise))
            for copy in range(self.size)
        ]
        mean: Gradient = tree_map(lambda *leaves: torch.stack(leaves).mean(0), *copies)
        return mean

    def refuses(self, model: LatentModel) -> str | None:
        reason = self.wrapped.refuses(model)
        return None if reason is None else f"{self.label()} of {reason}"


@dataclass(frozen=True)
class Antithetic(NoiseScheme):
    """Antithetic pairs: an estimate and its mirror image, at noise eps and -eps (u and 1 - u where it is uniform).

    .. math:: \\tfrac{1}{2} \\{ g(\\epsilon) + g(-\\epsilon) \\}

    What is odd in the noise cancels: the reparameterised gradient of a quadratic with respect to a mean has no variance left.

    Arguments:
        num_samples: K of each of the two estimates; the pair takes 2 K samples.
        of: an estimator, or the name of a registered one with its default settings; K is the scheme's own.

    Warning:
        What is even in the noise does not cancel, and is evaluated twice for nothing: with respect to a scale the pair has up
        to the variance of one estimate, at the cost of two. The two copies are no independent draws.

    References:
        Hammersley & Morton (1956); Wu, Goodman & Ermon (2019).

    Example:
        >>> pair = Antithetic(num_samples=1, of="sticking-the-landing")
        >>> noise = pair.draws(DiagonalGaussian(torch.zeros(2), torch.zeros(2)), 3, torch.Generator())[0].noise
        >>> noise.shape, bool((noise[:, 0] == -noise[:, 1]).all())
        (torch.Size([3, 2, 1, 2]), True)
    """

    name = "antithetic"
    citations = ("hammersley1956", "wu2019")

    @property
    def size(self) -> int:
        return 2

    def couple(self, noise: Tensor, uniform: bool, generator: torch.Generator) -> Tensor:
        return torch.stack([noise, _inside(1 - noise) if uniform else -noise], 1)


@dataclass(frozen=True)
class Copies(NoiseScheme):
    """Abstract: a scheme of any number of copies, built from uniform numbers.

    Arguments:
        of: as for ``antithetic``. copies: C.
    """

    copies: int = 16

    @property
    def size(self) -> int:
        return self.copies

    @abstractmethod
    def uniforms(self, rows: int, dimension: int, generator: torch.Generator) -> Tensor:
        """Points ``(rows, copies, dimension)`` in the open unit cube, float64, each of them uniform."""

    def couple(self, noise: Tensor, uniform: bool, generator: torch.Generator) -> Tensor:
        points = self.uniforms(noise.shape[0], noise.shape[1], generator)
        return _inside(points.to(noise.dtype)) if uniform else torch.special.ndtri(points)


@dataclass(frozen=True)
class Sobol(Copies):
    """Randomised quasi-Monte Carlo: the copies' noise is a Sobol net under one random digital shift for each estimate.

    .. math:: \\tfrac{1}{C} \\sum_{c} g(F^{-1}(s_c \\oplus \\Delta)), \\qquad \\Delta \\sim U(0, 1)^n

    The digits of the net are shifted by exclusive or, what lies below the net's last digit is drawn anew, so every point is
    exactly uniform and the estimate unbiased, while the C points keep filling the cube evenly.

    Arguments:
        num_samples: K of each copy. of: as for ``antithetic``.
        copies: C, a power of two, as the net asks for.

    Warning:
        Without a randomisation the estimate would be one fixed number, with an error that no replicate shows. The gain over
        independent copies is largest for smooth gradients in few dimensions, n = K x latents x data points.

    References:
        Owen (1997), randomised nets; Buchholz, Wenzel & Mandt (2018).

    Example:
        >>> points = Sobol(copies=4).uniforms(1, 1, torch.Generator().manual_seed(0))
        >>> sorted((points[0, :, 0] * 4).long().tolist())  # one in each quarter
        [0, 1, 2, 3]
    """

    name = "sobol"
    citations = ("owen1997", "buchholz2018")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.copies < 2 or self.copies & (self.copies - 1):
            raise Refusal(f"sobol takes copies that are a power of two, 2 or more, not {self.copies}")

    def uniforms(self, rows: int, dimension: int, generator: torch.Generator) -> Tensor:
        if dimension > SobolEngine.MAXDIM:
            raise Refusal(
                f"sobol reaches {SobolEngine.MAXDIM} dimensions; one estimate of {self.wrapped.label()} takes {dimension}"
            )
        where = {"generator": generator, "device": generator.device}
        net = SobolEngine(dimension).draw(self.copies, dtype=torch.float64)  # type: ignore[no-untyped-call]
        digits = (net * 2**_BITS).long().to(generator.device)
        shift = torch.randint(2**_BITS, (rows, 1, dimension), **where)  # type: ignore[call-overload]
        below = torch.rand((rows, self.copies, dimension), dtype=torch.float64, **where)  # type: ignore[call-overload]
        return _inside(((digits ^ shift) + below) / 2**_BITS)


@dataclass(frozen=True)
class Stratified(Copies):
    """Latin hypercube: in every dimension of the noise each of C equally likely strata holds one copy.

    .. math:: u_{c, i} = \\{ \\pi_i(c) + U_{c, i} \\} / C, \\qquad \\pi_1, \\pi_2, \\ldots \\text{ independent permutations}

    What is a sum of functions of single numbers of the noise is integrated as if stratified in each of them.

    Arguments:
        num_samples: K of each copy. of: as for ``antithetic``.
        copies: C >= 2.

    Warning:
        One permutation for all dimensions would leave the copies on the diagonal of the cube, a bias wherever numbers of the
        noise interact. Interactions keep the variance of C independent copies.

    References:
        McKay, Beckman & Conover (1979).

    Example:
        >>> points = Stratified(copies=4).uniforms(1, 3, torch.Generator().manual_seed(0))
        >>> (points[0] * 4).long().sort(0).values.T.tolist()
        [[0, 1, 2, 3], [0, 1, 2, 3], [0, 1, 2, 3]]
    """

    name = "stratified"
    citations = ("mckay1979",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.copies < 2:
            raise Refusal(f"stratified takes copies >= 2, not {self.copies}")

    def uniforms(self, rows: int, dimension: int, generator: torch.Generator) -> Tensor:
        order, within = torch.rand(
            (2, rows, dimension, self.copies), dtype=torch.float64, generator=generator, device=generator.device
        )
        return _inside((order.argsort(2) + within) / self.copies).transpose(1, 2)


class _Probe(DiagonalGaussian):
    """A guide that remembers the noise it gave."""

    def __init__(self) -> None:
        zero = torch.zeros(1, 1, dtype=torch.float64)
        super().__init__(zero, zero)
        object.__setattr__(self, "given", set())

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        noise = super().noise(shape, generator)
        self.given.add(id(noise))  # type: ignore[attr-defined]
        self.__dict__.setdefault("kept", []).append(noise)  # alive, so that no other tensor takes its id
        return noise


def _guide_noise_alone(estimator: Estimator) -> bool:
    """Whether all that one estimate draws is one batch of the guide's noise."""
    if type(estimator).draws is Estimator.draws:
        return True
    probe = _Probe()
    try:
        draws = estimator.draws(probe, 2, torch.Generator().manual_seed(0))
    except Exception:
        return False
    return len(draws) == 1 and all(id(leaf) in probe.given for leaf in tree_leaves(draws[0].noise))  # type: ignore[attr-defined]


def _copy(scheme: str, of: str | Estimator, num_samples: int) -> Estimator:
    """The estimator that is to be wrapped, with the scheme's number of samples and nothing learnt."""
    from . import REGISTRY

    if isinstance(of, str) and of not in REGISTRY:
        raise Refusal(f"{scheme} takes of=NAME with the name of a registered estimator, not {of!r}")
    if issubclass(REGISTRY[of] if isinstance(of, str) else type(of), NoiseScheme):
        raise Refusal(f"{scheme} cannot wrap {of if isinstance(of, str) else of.label()}: one scheme at a time")
    try:
        return REGISTRY[of](num_samples) if isinstance(of, str) else replace(of, num_samples=num_samples, state=None)
    except Refusal as reason:
        raise Refusal(f"{scheme} of {reason}") from None


def _inside(u: Tensor) -> Tensor:
    """Uniform numbers kept off 0 and 1, where densities and quantiles end."""
    info = torch.finfo(u.dtype)
    return u.clamp(info.tiny, 1 - info.eps / 2)
