"""A variational autoencoder that the suite trains itself, measured at frozen points of its training."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from estimators import REGISTRY, Block, Estimator, Guide, LatentModel, Parameters, Refusal
from estimators.contract import Latent

from .. import data as digits_data
from ..schema import TrainingRecord, canonical_json
from ..specs import SpecError, canonical, nearest, settings_of
from ..training import CHECKPOINTS, Progress, Schedule, generator, load, store, train, training_threads
from .family import Family
from .gaussian import ALL
from .problem import Problem
from .vae import OneLayer


@dataclass(frozen=True)
class TrainedOnDigits(Problem, Family):
    """Abstract: a model that is trained on 28x28 digits; a subclass adds a :class:`~benchmarks.problems.family.Family`.

    It is trained on 4,000 digits, dynamically binarised, once per settings; the three checkpoints are kept in the cache
    folder (:func:`benchmarks.data.cache_folder`). Gradients are measured on ``points`` held-out digits, binarised once.
    Training is in float32 whatever ``dtype`` says, so that all precisions are measured at the same parameters.

    A subclass names its family after this class: the sizes then come first in a specification.

    Arguments:
        epochs, batch, learning_rate: of the training (:class:`benchmarks.training.Schedule`).
        objective: the registered estimator that trains it, with ``train_num_samples`` samples per image.
        seed: of the start, of the minibatches and of the training's noise.
        checkpoint: ``start`` (untrained), ``middle`` (after a tenth of the steps) or ``converged`` (after all of them).
        points: held-out digits, at most 1,000.
    """

    epochs: int = 40
    batch: int = 100
    learning_rate: float = 3e-3
    objective: str = "reparameterization"
    train_num_samples: int = 1
    seed: int = 0
    checkpoint: str = "converged"
    points: int = 16
    dtype: str = field(default="float32", kw_only=True)

    version = "2"
    """Since the second, training rounds as plain autograd and a fused Adam do."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._model  # as the data: not first made inside a functorch transform

    def validate(self) -> None:
        try:
            self.validate_sizes()
        except SpecError as problem:
            raise SpecError(f"{self.name}: {problem}") from None
        for name in ("epochs", "batch", "points"):
            self.require(getattr(self, name) >= 1, f"{name} must be at least 1, not {getattr(self, name)}")
        for name, most in (("batch", digits_data.TRAIN), ("points", digits_data.HELD_OUT)):
            self.require(getattr(self, name) <= most, f"{name} must be at most {most}, not {getattr(self, name)}")
        self.require(self.seed >= 0, f"seed must not be negative, not {self.seed}")
        self.require(self.learning_rate > 0, f"learning_rate must be positive, not {self.learning_rate}")
        self.require(
            self.checkpoint in CHECKPOINTS,
            f"no checkpoint {self.checkpoint!r}; {nearest(self.checkpoint, CHECKPOINTS)}",
        )
        self.require(
            self.objective in REGISTRY, f"no objective {self.objective!r}; {nearest(self.objective, REGISTRY)}"
        )
        try:
            _ = self._estimator
        except Refusal as refusal:
            raise SpecError(f"{self.name}: {refusal}") from None

    @cached_property
    def data(self) -> Tensor:
        return self.tensor(_held_out()[: self.points])

    @cached_property
    def parameters(self) -> Parameters:
        found = self._start() if self.checkpoint == "start" else self._training()[1][self.checkpoint]
        return {block: {name: self.tensor(leaf) for name, leaf in leaves.items()} for block, leaves in found.items()}

    def guide(self, phi: Block) -> Guide:
        return self._model.guide(phi)

    def prior(self, theta: Block) -> Guide:
        return self._model.prior(theta)

    def log_likelihood(self, theta: Block, z: Latent) -> Tensor:
        return self._model.log_likelihood(theta, z)

    def log_joint(self, theta: Block, z: Latent) -> Tensor:
        return self._model.log_joint(theta, z)

    def simulate(self, theta: Block, noise: Any) -> tuple[Latent, LatentModel]:
        return self._model.simulate(theta, noise)

    def prepare(self, progress: Progress | None = None) -> None:
        """Train, unless it was done before or the checkpoint is the untrained one."""
        if self.checkpoint != "start":
            self._training(progress)

    def training_record(self) -> TrainingRecord | None:
        """The curve of the training; ``None`` for an untrained checkpoint whose training was not yet run."""
        if self.checkpoint == "start":
            kept = load(self.training_file, self.training_id, self._start())
            return None if kept is None else kept[0]
        return self._training()[0]

    def pictures(self) -> dict[str, np.ndarray] | None:
        """Of the converged model, whichever checkpoint this is; ``None`` for an untrained one, as the curve is."""
        from ..evaluation.pictures import album  # which knows families, and through them this module

        if self.training_record() is None:
            return None
        parameters = self._training()[1]["converged"]
        return album(
            self, {b: {k: v.cpu() for k, v in leaves.items()} for b, leaves in parameters.items()}, _held_out()
        )

    @property
    def training_id(self) -> str:
        """A hash of all that the trained numbers depend on; checkpoint, points and dtype are not among it."""
        identity = {
            "problem": canonical(self, leave_out=("checkpoint", "points")),
            "versions": [self.version, self._estimator.version],
            "digits": digits_data.DIGITS_SHA256,
            # A graphics processor draws other numbers from the same seed.
            "device": torch.device(self.device).type,
        }
        return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:20]

    @property
    def training_file(self) -> Path:
        """Where the trained checkpoints are, or will be, kept."""
        return digits_data.cache_folder() / "training" / f"{self.training_id}.safetensors"

    @cached_property
    def _model(self) -> LatentModel:
        return self.model_of(self.data)

    @property
    def _estimator(self) -> Estimator:
        return REGISTRY[self.objective](num_samples=self.train_num_samples)

    def _start(self) -> Parameters:
        mean = torch.from_numpy(digits_data.split()[0]).mean(0)
        return self.start(mean, generator("cpu", "training", self.seed, "start"))

    def _training(self, progress: Progress | None = None) -> tuple[TrainingRecord, dict[str, Parameters]]:
        """From the cache folder, or else trained now and put there."""
        kept = load(self.training_file, self.training_id, self._start())
        if kept is not None:
            return kept
        start = {block: {k: v.to(self.device) for k, v in leaves.items()} for block, leaves in self._start().items()}
        trained = train(
            self.model_of,
            self._estimator,
            start,
            torch.from_numpy(digits_data.split()[0]).to(self.device),
            _held_out().to(self.device),
            Schedule(self.epochs, self.batch, self.learning_rate, self.seed),
            progress,
        )
        record = TrainingRecord(
            id=self.training_id,
            problem=canonical(self, leave_out=("checkpoint", "points")),
            settings=self._settings(),
            parameters=sum(leaf.numel() for leaves in start.values() for leaf in leaves.values()),
            points=trained.points,
        )
        store(self.training_file, record, trained.checkpoints)
        return record, trained.checkpoints

    def _settings(self) -> dict[str, Any]:
        names = [name for name in settings_of(type(self)) if name not in ("checkpoint", "points")]
        return {name: getattr(self, name) for name in names} | {
            "dtype": "float32",
            "device": self.device,
            "threads": training_threads(self.batch * self.train_num_samples),
            "torch": torch.__version__,
        }


@dataclass(frozen=True)
class DigitsVAE(TrainedOnDigits, OneLayer):
    """VAE 784-hidden-hidden-latent (tanh) on 28x28 digits: p(z) = N(0, I), Bernoulli pixels, q = N(loc(x), scale(x)^2).

    It is trained on 4,000 digits, dynamically binarised, once per settings; the three checkpoints are kept in the cache
    folder (:func:`benchmarks.data.cache_folder`). Gradients are measured on ``points`` held-out digits, binarised once.
    Training is in float32 whatever ``dtype`` says, so that all precisions are measured at the same parameters.

    Arguments:
        hidden, latent: widths. Burda's are 200 and 50.
        epochs, batch, learning_rate: of the training (:class:`benchmarks.training.Schedule`).
        objective: the registered estimator that trains it, with ``train_num_samples`` samples per image.
        seed: of the start, of the minibatches and of the training's noise.
        checkpoint: ``start`` (untrained), ``middle`` (after a tenth of the steps) or ``converged`` (after all of them).
        points: held-out digits, at most 1,000.

    theta and phi: the decoder's and the encoder's named parameters (:mod:`benchmarks.problems.vae`).

    References:
        Kingma & Welling (2014); Burda, Grosse & Salakhutdinov (2016), section 5, for architecture and data.
    """

    name = "digits-vae"
    summary = "VAE with 50 latents on MNIST digits, trained by this suite: gradients at start, middle and converged"
    citations = ("kingma2014", "burda2016")
    offers = ALL


@lru_cache(maxsize=1)
def _held_out() -> Tensor:
    """The 1,000 held-out digits, binarised once and for all: the same for every seed, on every device."""
    return digits_data.binarize(torch.from_numpy(digits_data.split()[1]), generator("cpu", "digits", "held-out"))
