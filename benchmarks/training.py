"""Training of a latent model by any registered estimator, and the file that keeps what came of it.

The data are fresh binarisations of grey images, one minibatch a step; the optimiser is Adam. All randomness comes from
generators seeded by (seed, purpose), never from the settings: runs of different objectives with one seed start from the
same parameters and see the same images in the same order, so their curves can be compared in pairs.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor
from torch.utils._pytree import tree_map

from estimators import Estimator, LatentModel, Parameters

from . import devices
from .data import DataError, binarize
from .schema import TrainingPoint, TrainingRecord, canonical_json
from .tensors import Kind, look, save

CHECKPOINTS = ("start", "middle", "converged")
MIDDLE = 0.1
"""The middle checkpoint's place, as a fraction of the steps: early, when the objective still rises fast."""
CURVE_POINTS = 16
IWAE_SAMPLES, IWAE_IMAGES = 50, 200
LARGE_STEP = 2000
"""Images times samples of one step from which on threads pay."""
ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-4
"""Burda et al. (2016), section 5."""

Progress: TypeAlias = Callable[[int, int, float], None]
"""Called with (step, steps, mean of the objective's value since the last call, in nats per image)."""


class TrainingError(RuntimeError):
    """A training that went astray. One line, fit to be shown."""


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: the learning rate is constant for half of the steps, then falls linearly to zero.

    The fall lets a few dozen passes end near a stationary point: without it the default network's held-out ELBO is
    5 nats lower.
    """

    epochs: int
    batch: int
    learning_rate: float
    seed: int

    def steps(self, images: int) -> int:
        """Minibatches in all; the images left over at the end of a pass wait for the next shuffle."""
        return self.epochs * (images // self.batch)

    def rate(self, step: int, steps: int) -> float:
        """The learning rate of a step, counted from 0."""
        return self.learning_rate * min(1.0, 2 * (1 - step / steps))


class Trained(NamedTuple):
    """Parameters at each of :data:`CHECKPOINTS`, and the curve."""

    checkpoints: dict[str, Parameters]
    points: list[TrainingPoint]


def train(
    model_of: Callable[[Tensor], LatentModel],
    estimator: Estimator,
    parameters: Parameters,
    images: Tensor,
    held_out: Tensor,
    schedule: Schedule,
    progress: Progress | None = None,
) -> Trained:
    """Ascend the estimator's objective from ``parameters``, which are left as they are.

    The same arguments give the same numbers, bit for bit, on one build of torch (for large steps, also with one number
    of threads: :func:`training_threads`).

    Arguments:
        model_of: the latent model of a minibatch of binary images ``(batch, pixels)``.
        estimator: gives the gradients; each step takes one estimate.
        images: grey training images ``(n, pixels)`` in [0, 1], binarised afresh at every step.
        held_out: binary images; bounds are evaluated on them at about :data:`CURVE_POINTS` steps, with fixed noise.

    Raises:
        TrainingError: where a parameter is no longer finite.
    """
    seed, steps = schedule.seed, schedule.steps(len(images))
    parameters = _copy(parameters)
    leaves = [leaf for block in parameters.values() for leaf in block.values()]
    optimizer = torch.optim.Adam(
        leaves, lr=schedule.learning_rate, betas=ADAM_BETAS, eps=ADAM_EPS, maximize=True, fused=True
    )
    minibatches = _minibatches(images, schedule)
    noise = generator(str(images.device), "training", seed, "noise")
    watched = binarize(images[: len(held_out)], generator(str(images.device), "training", seed, "watched"))

    places = dict(zip(CHECKPOINTS, (0, max(1, round(MIDDLE * steps)), steps), strict=True))
    marks = {step: name for name, step in places.items()}
    stops = sorted({*marks, *(round(steps * i / CURVE_POINTS) for i in range(CURVE_POINTS + 1))})
    checkpoints: dict[str, Parameters] = {}
    points: list[TrainingPoint] = []
    values: list[Tensor] = []
    seconds = 0.0
    with torch.no_grad():  # noise depends neither on phi nor on which images there are
        drawing = model_of(watched[:1].expand(schedule.batch, -1)).guide(parameters["phi"])
    with _threads(training_threads(schedule.batch * estimator.num_samples)):
        for previous, stop in pairwise([0, *stops]):
            began = time.perf_counter()
            for step in range(previous, stop):
                model = model_of(next(minibatches))
                with torch.no_grad():
                    (draw,) = estimator.draws(drawing, 1, noise)
                rate = schedule.rate(step, steps)
                values.append(_ascend(model, estimator, parameters, draw.noise, optimizer, rate))
                if (step + 1) % max(1, steps // 100) == 0:
                    if progress is not None:
                        progress(step + 1, steps, torch.stack(values).mean().item())
                    values.clear()
            devices.synchronize(str(images.device))
            seconds += time.perf_counter() - began
            _require_finite(leaves, stop)
            bounds = evaluate(model_of, parameters, watched, held_out, seed)
            epoch = stop / (len(images) // schedule.batch)
            points.append(TrainingPoint(step=stop, epoch=epoch, seconds=seconds, checkpoint=marks.get(stop), **bounds))
            checkpoints |= {name: _copy(parameters) for name, place in places.items() if place == stop}
    return Trained(checkpoints, points)


def training_threads(samples: int) -> int:
    """Threads of a training whose step takes this many samples (images times K) through the network.

    One for a small step: a second one gains it little, waits for whoever else is on the processor (ten times slower was
    seen), and makes the numbers depend on the machine. All that torch was given for a large step.
    """
    return 1 if samples < LARGE_STEP else torch.get_num_threads()


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _minibatches(images: Tensor, schedule: Schedule) -> Iterator[Tensor]:
    """Fresh binarisations of shuffled images, without end."""
    order = generator("cpu", "training", schedule.seed, "order")
    pixels = generator(str(images.device), "training", schedule.seed, "pixels")
    while True:
        rows = torch.randperm(len(images), generator=order).to(images.device)
        for some in rows[: len(images) // schedule.batch * schedule.batch].view(-1, schedule.batch):
            yield binarize(images[some], pixels)


def _ascend(
    model: LatentModel,
    estimator: Estimator,
    parameters: Parameters,
    noise: Any,
    optimizer: torch.optim.Optimizer,
    rate: float,
) -> Tensor:
    """One step in place, from noise of one replicate; the objective's value before it."""
    gradient = estimator.gradient(model, parameters, tree_map(lambda leaf: leaf[0], noise))
    for block, slopes in (("theta", gradient.theta), ("phi", gradient.phi)):
        for name, leaf in parameters[block].items():
            leaf.grad = slopes[name]
    optimizer.param_groups[0]["lr"] = rate
    optimizer.step()
    return gradient.value


def evaluate(
    model_of: Callable[[Tensor], LatentModel], parameters: Parameters, watched: Tensor, held_out: Tensor, seed: int
) -> dict[str, Any]:
    """Bounds of one point of a curve, in nats per image; standard errors are those of the mean over images.

    The noise is the same at every point, so that a curve shows the parameters' change alone. One sample per image is
    enough for the ELBO: images differ far more than samples do.

    Arguments:
        watched: binary training images, evaluated as the held-out ones are, whatever the objective: their distance is
            what the network has learnt by heart.
    """

    def bound(x: Tensor, num_samples: int) -> tuple[float | None, float | None]:
        stream = generator(str(x.device), "training", seed, "evaluation", num_samples)
        values = log_mean_weight(model_of(x), parameters, num_samples, stream)
        error = values.std().item() / math.sqrt(len(values)) if len(values) > 1 else math.nan
        return _finite(values.mean().item()), _finite(error)

    elbo, elbo_error = bound(held_out, 1)
    iwae, iwae_error = bound(held_out[:IWAE_IMAGES], IWAE_SAMPLES)
    return {
        "train_elbo": bound(watched, 1)[0],
        "heldout_elbo": elbo,
        "heldout_elbo_standard_error": elbo_error,
        "heldout_iwae": iwae,
        "heldout_iwae_standard_error": iwae_error,
        "iwae_num_samples": IWAE_SAMPLES,
    }


@torch.no_grad()
def log_mean_weight(model: LatentModel, parameters: Parameters, num_samples: int, stream: torch.Generator) -> Tensor:
    """log (1/K) sum_k w_k of every data point, ``(batch,)``, float64."""
    guide = model.guide(parameters["phi"])
    z = guide.transform(guide.noise((num_samples,), stream))
    log_w = model.log_joint(parameters["theta"], z) - guide.log_prob(z)
    return log_w.double().logsumexp(0) - math.log(num_samples)


def generator(device: str, *identity: str | int) -> torch.Generator:
    """A generator seeded by a hash of ``identity``."""
    digest = hashlib.sha256(canonical_json(list(identity)).encode()).digest()
    state = np.random.SeedSequence(int.from_bytes(digest, "big")).generate_state(1, np.uint64)
    return torch.Generator(device).manual_seed(int(state[0]) & (2**63 - 1))


def store(path: Path, record: TrainingRecord, checkpoints: dict[str, Parameters]) -> None:
    """Keep a training in one safetensors file: tensors ``checkpoint/block/name``, the record and a checksum.

    Written whole or not at all. Two processes that train the same thing write the same numbers, whichever comes last.

    Raises:
        DataError: if the folder cannot be written.
    """
    tensors = {
        f"{checkpoint}/{block}/{name}": leaf.detach().cpu().contiguous()
        for checkpoint, blocks in checkpoints.items()
        for block, leaves in blocks.items()
        for name, leaf in leaves.items()
    }
    save(path, tensors, canonical_json(record.model_dump(mode="json")))


def load(path: Path, identity: str, start: Parameters) -> tuple[TrainingRecord, dict[str, Parameters]] | None:
    """What :func:`store` kept, or ``None`` where it is absent, truncated, altered, or of another training.

    Arguments:
        start: parameters of the names, types and shapes that the checkpoints must have.
    """
    kinds = {
        f"{checkpoint}/{block}/{name}": Kind.of(leaf)
        for checkpoint in CHECKPOINTS
        for block, leaves in start.items()
        for name, leaf in leaves.items()
    }
    try:
        head = look(path)
        head.require(kinds)
        record = TrainingRecord.model_validate_json(head.text)
        # Read, not mapped: a mapped file that is cut short later takes the process with it (SIGBUS).
        tensors = head.read()
    except (DataError, ValidationError):
        return None
    checkpoints: dict[str, Parameters] = {name: {"theta": {}, "phi": {}} for name in CHECKPOINTS}
    for key, leaf in tensors.items():
        checkpoint, block, name = key.split("/")
        checkpoints[checkpoint][block][name] = leaf
    return (record, checkpoints) if record.id == identity else None


def _copy(parameters: Parameters) -> Parameters:
    return {block: {name: leaf.detach().clone() for name, leaf in b.items()} for block, b in parameters.items()}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _require_finite(leaves: list[Tensor], step: int) -> None:
    if not all(bool(leaf.isfinite().all()) for leaf in leaves):
        raise TrainingError(f"training diverged before step {step}: parameters are not finite; lower the learning rate")
