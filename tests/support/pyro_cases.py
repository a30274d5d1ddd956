"""Problems with Pyro twins, small, and what their guides draw."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.problems import (
    Banana,
    CategoricalMixture,
    Gaussian1D,
    GaussianMeanField,
    LinearGaussian,
    Problem,
    Rainforth,
    SigmoidBeliefNet,
    TwoLayerGaussian,
)
from benchmarks.problems.vae import VAE, initial_parameters
from benchmarks.references import pyro_models
from benchmarks.references.pyro_models import Twin
from estimators import BLOCKS, Block, DiagonalGaussian, Gradient, Parameters
from estimators.trees import tree_map


@dataclass(frozen=True)
class SmallVAE(Problem):
    """What the twin asks of `digits-vae`: its name, binary ``data`` and the parameters of its networks; small."""

    name = "digits-vae"
    summary = "two latents, six pixels"
    offers = VAE.offers

    @cached_property
    def _vae(self) -> VAE:
        return VAE(self.data, hidden=4, latent=2)

    @cached_property
    def parameters(self) -> Parameters:
        return initial_parameters(4, 2, self.tensor([0.2, 0.5, 0.4, 0.9, 0.6, 0.3]), torch.Generator().manual_seed(5))

    @cached_property
    def data(self) -> Tensor:
        return self.tensor(np.random.default_rng(6).integers(0, 2, (3, 6)))

    def guide(self, phi: Block) -> DiagonalGaussian:
        return self._vae.guide(phi)

    def prior(self, theta: Block) -> DiagonalGaussian:
        return self._vae.prior(theta)

    def log_likelihood(self, theta: Block, z: Tensor) -> Tensor:
        return self._vae.log_likelihood(theta, z)

    def log_joint(self, theta: Block, z: Tensor) -> Tensor:
        return self._vae.log_joint(theta, z)


GAUSSIAN = [
    Gaussian1D(loc=0.3, scale=1.2, x=0.7, prior_loc=-0.4),
    LinearGaussian(dim=2, data_dim=3, points=4, noise_scale=0.7),
    Rainforth(dim=3, points=2, perturbation=0.3),
    SmallVAE(),
    GaussianMeanField(dim=2),
    Banana(),
    TwoLayerGaussian(dim=2, points=2),
]
DISCRETE = [SigmoidBeliefNet(dim=3, data_dim=4, points=2), CategoricalMixture(dim=2, values=3, points=2)]
PROBLEMS = [*GAUSSIAN, *DISCRETE]


def leaves(gradient: Gradient) -> dict[str, Tensor]:
    blocks = {f"{block}.{name}": leaf for block in BLOCKS for name, leaf in getattr(gradient, block).items()}
    return {"value": gradient.value, **blocks}


def recorded(monkeypatch: pytest.MonkeyPatch, problem: Problem) -> list[Any]:
    """Latents that the guide of this problem's twin draws from now on."""
    drawn: list[Any] = []
    make = pyro_models.TWINS[problem.name]

    def spied(problem: Problem, parameters: Parameters) -> Twin:
        model, guide = make(problem, parameters)

        def listening() -> Any:
            z = guide()
            drawn.append(tree_map(lambda leaf: torch.as_tensor(leaf.detach().tolist(), dtype=leaf.dtype), z))
            return z

        return Twin(model, listening)

    monkeypatch.setitem(pyro_models.TWINS, problem.name, spied)
    return drawn
