"""What a family of trained models is: a model for any batch of binary images, and parameters to start from."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from estimators import Block, LatentModel, Parameters

from ..specs import SpecError


class Family(ABC):
    """Abstract: a subclass is a frozen dataclass whose fields are the sizes of its networks."""

    @abstractmethod
    def model_of(self, x: Tensor) -> LatentModel:
        """The model of binary images ``(batch, pixels)``."""

    @abstractmethod
    def start(self, mean: Tensor, generator: torch.Generator) -> Parameters:
        """Parameters to start from.

        Arguments:
            mean: the mean training image, ``(pixels,)``; its type and device become the parameters'.
            generator: on the CPU, so that the start is the same on every device.
        """

    @abstractmethod
    def prior_sample(self, theta: Block, count: int, generator: torch.Generator) -> Any:
        """Latents ``(count, *event)`` from the prior."""

    @abstractmethod
    def images(self, theta: Block, z: Any, generator: torch.Generator) -> Tensor:
        """What latents ``(*batch, *event)`` look like, ``(*batch, pixels)`` in [0, 1].

        The pixels' means where they are independent given z; else one draw of them.
        """

    def generate(self, theta: Block, count: int, generator: torch.Generator) -> tuple[Any, Tensor]:
        """Latents from the prior, and binary images ``(count, pixels)`` given them."""
        z = self.prior_sample(theta, count, generator)
        return z, torch.bernoulli(self.images(theta, z, generator), generator=generator)

    @abstractmethod
    def validate_sizes(self) -> None:
        """Refuse sizes that make no network.

        Raises:
            SpecError: without the family's name.
        """


def glorot(network: nn.Module, generator: torch.Generator, like: Tensor) -> Block:
    """A network's named parameters: Glorot's uniform weights, zero biases, of the type of ``like`` and on its device.

    References:
        Glorot & Bengio (2010).
    """

    def one(shape: tuple[int, ...]) -> Tensor:
        empty = torch.empty(shape)
        return torch.zeros(shape) if len(shape) == 1 else nn.init.xavier_uniform_(empty, generator=generator)

    return {name: one(tuple(leaf.shape)).to(like) for name, leaf in network.named_parameters()}


def logit_of(mean: Tensor) -> Tensor:
    """The output bias that gives the mean image, clipped to 0.001 ... 0.999.

    References:
        Burda et al. (2016), in their code (yburda/iwae).
    """
    return torch.logit(mean.double().clamp(0.001, 0.999)).to(mean)


def part(block: Block, prefix: str) -> Block:
    """The parameters whose names begin with ``prefix`` and a dot, named without them.

    Example:
        >>> part({"upper.bias": torch.zeros(1), "lower.bias": torch.ones(1)}, "upper")
        {'bias': tensor([0.])}
    """
    return {name[len(prefix) + 1 :]: leaf for name, leaf in block.items() if name.startswith(f"{prefix}.")}


def joined(parts: dict[str, Block]) -> Block:
    """Blocks of several networks as one, each name after its network's: :func:`part` takes them apart again."""
    return {f"{prefix}.{name}": leaf for prefix, block in parts.items() for name, leaf in block.items()}


def widths(text: str, name: str) -> tuple[int, ...]:
    """Numbers from text such as ``200-100``.

    Raises:
        SpecError: if a part is no whole number above 0.

    Example:
        >>> widths("200-100", "hidden")
        (200, 100)
    """
    parts = text.split("-")
    if not all(each.isascii() and each.isdigit() and int(each) > 0 for each in parts):
        raise SpecError(f"{name} must be whole numbers above 0 joined by dashes, such as 200-100, not {text!r}")
    return tuple(int(each) for each in parts)


def require_positive(sizes: Any, names: Iterable[str]) -> None:
    """Each named field is at least 1.

    Raises:
        SpecError: which names the first that is not.
    """
    for name in names:
        if getattr(sizes, name) < 1:
            raise SpecError(f"{name} must be at least 1, not {getattr(sizes, name)}")


def side(pixels: int) -> int:
    """The side of a square image.

    Raises:
        SpecError: if it is not square.
    """
    found = math.isqrt(pixels)
    if found * found != pixels:
        raise SpecError(f"images must be square, and {pixels} pixels are not")
    return found
