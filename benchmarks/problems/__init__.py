"""Problems: models with data, parameters, and what is exactly known of their gradients. One file per family."""

from __future__ import annotations

from .belief_net import SigmoidBeliefNet
from .digits import DigitsVAE
from .gaussian import Gaussian1D, LinearGaussian
from .problem import Problem, Reference
from .rainforth import Rainforth

REGISTRY: dict[str, type[Problem]] = {
    cls.name: cls for cls in (Gaussian1D, LinearGaussian, Rainforth, SigmoidBeliefNet, DigitsVAE)
}

__all__ = [
    "REGISTRY",
    "DigitsVAE",
    "Gaussian1D",
    "LinearGaussian",
    "Problem",
    "Rainforth",
    "Reference",
    "SigmoidBeliefNet",
]
