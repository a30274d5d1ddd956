"""A training: minibatches, one estimate a step, Adam, a curve, and a checkpoint to go on from.

All randomness comes from generators seeded by (seed, purpose), never from the settings, and their states are kept in the
checkpoint: a training that was killed and one that was not end in the same bits.
"""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, TypeAlias

import torch
from pydantic import ValidationError
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from estimators import BLOCKS, Estimator, Gradient, Guide, LatentModel, Parameters, Refusal
from estimators.trees import tree_leaves

from ..arithmetic import matmul_precision
from ..cost import CountingModel
from ..data import DataError, binarize
from ..files import write_text
from ..images import Images
from ..problems.family import Family
from ..records import pretty
from ..registry import Registry, estimator_spec
from ..specs import SpecError
from ..streams import generator
from ..tensors import Kind
from ..training import TrainingError, training_threads
from ..training import _threads as threads
from .checkpoint import look, nested, save
from .families import Dreaming, can_dream, family
from .pairing import Pair
from .settings import Settings
from .tempering import require_temperable, target_name, tempered

CHECKPOINT, CURVE = "checkpoint.safetensors", "training.json"
STREAMS = ("order", "pixels", "theta", "phi")

Told: TypeAlias = Callable[["Session"], bool | None]
"""Called after every step; true stops the training there, its checkpoint kept."""


class Session:
    """A training and all that it has come to; :meth:`run` takes it further.

    Arguments:
        settings: what is trained, and how.
        images: what it is trained on.
        registry: where estimators are looked up.

    Raises:
        SpecError, Refusal: for settings that make no sense together.
    """

    def __init__(self, settings: Settings, images: Images, registry: Registry | None = None) -> None:
        self.settings, self.family = settings, family(settings.model)
        dtype = getattr(torch, settings.dtype)
        self.images = Images(images.train.to(dtype), images.held_out.to(dtype), images.side)
        if settings.data.batch > len(self.images.train):
            raise Refusal(f"a batch of {settings.data.batch} is more than the {len(self.images.train)} training images")
        self.device = str(self.images.train.device)
        self.pair = pair_of(settings, registry or Registry())
        first = generator("cpu", "training", settings.seed, "start")
        self.parameters = _moved(self.family.start(self.images.train.mean(0).cpu(), first), self.device, dtype)
        self.optimizer = torch.optim.Adam(
            self.leaves, lr=settings.optimizer.learning_rate, betas=settings.optimizer.betas,
            eps=settings.optimizer.eps, maximize=True, fused=True,
        )  # fmt: skip
        self.streams = {
            name: generator("cpu" if name == "order" else self.device, "training", settings.seed, name)
            for name in STREAMS
        }
        self.step, self.evaluations, self.seconds, self.processor_seconds = 0, 0, 0.0, 0.0
        self.points: list[dict[str, Any]] = []
        self.value = float("nan")
        self.recent: deque[Tensor] = deque(maxlen=100)
        self._since = torch.zeros(2, dtype=torch.float64, device=self.device)
        self._rows: Tensor | None = None
        self._order = self.streams["order"].get_state()
        self._costs: dict[tuple[int, ...], int] = {}
        self._gradient: Callable[..., Gradient] = Pair.gradient
        self._drawing: Guide | None = None
        """Draws the noise of every step: it depends neither on phi nor on which images there are."""
        self.announced: list[str] = []
        self._check()

    @property
    def leaves(self) -> list[Tensor]:
        return [leaf for block in BLOCKS for leaf in self.parameters[block].values()]

    @property
    def per_epoch(self) -> int:
        """Steps in an epoch; the images left over wait for the next shuffle."""
        return len(self.images.train) // self.settings.data.batch

    @property
    def steps(self) -> int:
        """Steps in all."""
        return self.settings.optimizer.passes * self.per_epoch

    @property
    def warm_up(self) -> float:
        """beta of the next step: the weight of KL(q || prior), reached linearly where there is a warm-up."""
        objective = self.settings.objective
        epochs = objective.warm_up_epochs
        return objective.kl_weight * (1.0 if not epochs else min(1.0, self.step / (epochs * self.per_epoch)))

    def targets(self) -> dict[str, str]:
        """What each block's gradients are of, with what warm-up and free bits make of it."""
        return {block: target_name(self.pair, block, self.settings.objective) for block in BLOCKS}

    def run(
        self, folder: Path | None = None, told: Told | None = None, *, until: int | None = None, every: float = 60.0
    ) -> None:
        """Train to the end, or to step ``until``; keep a checkpoint in ``folder`` every so many seconds, and at the end.

        Raises:
            TrainingError: where a parameter is no longer finite.
            DataError: where the folder cannot be written.
        """
        end = min(self.steps, self.steps if until is None else until)
        stops = {round(self.steps * i / self.settings.watch.points) for i in range(self.settings.watch.points + 1)}
        kept = time.monotonic()
        samples = self.settings.data.batch * max(self.pair.theta.num_samples, self.pair.phi.num_samples)
        with threads(training_threads(samples)) if self.device == "cpu" else nullcontext():
            if self.step == 0 and not self.points:
                self._record()
            while self.step < end:
                self._advance()
                if self.step in stops:
                    self._record()
                if told is not None and told(self):
                    break
                if folder is not None and time.monotonic() - kept > every:
                    self.save(folder)
                    kept = time.monotonic()
        if folder is not None:
            self.save(folder)

    def _advance(self) -> None:
        """One step."""
        began, worked = time.perf_counter(), time.process_time()
        settings = self.settings.optimizer
        model = self._model(self._minibatch(), self.warm_up)
        if self._drawing is None:
            with torch.no_grad():
                self._drawing = model.guide(self.parameters["phi"])
        noise = self.pair.draw(self._drawing, self.streams)
        with matmul_precision(self.settings.matmul_precision):
            gradient = self._counted(model, noise)
        for block, found in (("theta", gradient.theta), ("phi", gradient.phi)):
            if settings.clip:
                size = torch.linalg.vector_norm(
                    torch.stack([torch.linalg.vector_norm(leaf) for leaf in found.values()])
                )
                scale = (settings.clip / size).clamp(max=1.0)
                found = {name: leaf * scale for name, leaf in found.items()}
            for name, leaf in self.parameters[block].items():
                leaf.grad = found[name]
        self.optimizer.param_groups[0]["lr"] = settings.rate(self.step, self.per_epoch)
        pair = self.pair.adapted(model, self.parameters, noise)
        self.optimizer.step()
        self.pair = pair
        value = gradient.value.detach().double()
        self.recent.append(value)
        self._since += torch.stack([value.nan_to_num(), value.isfinite().double()])
        self.step += 1
        self.seconds += time.perf_counter() - began
        self.processor_seconds += time.process_time() - worked

    def _model(self, x: Tensor, beta: float) -> LatentModel:
        """The model of a minibatch, as the estimators are to see it."""
        model = self.family.model_of(x)
        if "simulable" in self.pair.theta.needs | self.pair.phi.needs and can_dream(self.family, model):
            return Dreaming(model, self.family, self.parameters, x.shape[-1])
        return tempered(model, self.parameters, beta, self.settings.objective.free_bits)

    def _minibatch(self) -> Tensor:
        place = self.step % self.per_epoch
        batch = self.settings.data.batch
        if place == 0 or self._rows is None:
            if place == 0:
                self._order = self.streams["order"].get_state()
            self.streams["order"].set_state(self._order)
            self._rows = torch.randperm(len(self.images.train), generator=self.streams["order"]).to(self.device)
        some = self.images.train[self._rows[place * batch : (place + 1) * batch]]
        # Images that are binary already come through unchanged.
        return binarize(some, self.streams["pixels"])

    def _counted(self, model: LatentModel, noise: dict[str, Any]) -> Gradient:
        """The gradient; the first of each size is taken through a model that counts."""
        size = tuple(leaf.numel() for each in noise.values() for leaf in tree_leaves(each))
        if size not in self._costs:
            counting = CountingModel(model)
            gradient = self.pair.gradient(counting, self.parameters, noise)
            self._costs[size] = counting.evaluations
        else:
            gradient = self._gradient(self.pair, model, self.parameters, noise)
        self.evaluations += self._costs[size]
        return gradient

    def held_out(self) -> dict[str, Any]:
        """Bounds where the parameters stand, with the same held-out images and the same noise at every step."""
        from .assess import bounds

        watch = self.settings.watch
        stream = generator(self.device, "training", self.settings.seed, "evaluation")
        return bounds(self.family, self.parameters, self.images.held_out[: watch.images], watch.num_samples, stream)

    def _record(self) -> None:
        """A point of the curve."""
        if not all(bool(leaf.isfinite().all()) for leaf in self.leaves):
            raise TrainingError(f"diverged before step {self.step}: parameters are not finite; lower the learning rate")
        total, count = self._since.tolist()
        self.value = total / count if count else float("nan")
        self._since.zero_()
        self.points.append(
            {
                "step": self.step,
                "epoch": self.step / self.per_epoch,
                "evaluations": self.evaluations,
                "seconds": self.seconds,
                "processor_seconds": self.processor_seconds,
                "value": None if self.value != self.value else self.value,
                "beta": self.warm_up,
                **self.held_out(),
            }
        )

    def save(self, folder: Path) -> None:
        """``checkpoint.safetensors`` to go on from, and ``training.json`` to read."""
        tensors = self._tensors()
        facts = {
            "settings": self.settings.model_dump(mode="json"),
            "step": self.step,
            "steps": self.steps,
            "pixels": self.images.train.shape[1],
            "evaluations": self.evaluations,
            "seconds": self.seconds,
            "processor_seconds": self.processor_seconds,
            "value": None if self.value != self.value else self.value,
            "points": self.points,
            "torch": torch.__version__,
        }
        save(folder / CHECKPOINT, tensors, facts)
        shown = {**facts, "targets": self.targets(), "announced": self.announced}
        shown["estimators"] = {b: estimator_spec(getattr(self.pair, b)) for b in BLOCKS}
        write_text(folder / CURVE, pretty(shown))

    def _learners(self) -> dict[str, Estimator]:
        return {"theta": self.pair.theta} if self.pair.alike else {"theta": self.pair.theta, "phi": self.pair.phi}

    def _tensors(self) -> dict[str, Tensor]:
        """All that a training consists of, by the names of a checkpoint."""
        tensors = {f"parameters/{b}/{name}": leaf for b in BLOCKS for name, leaf in self.parameters[b].items()}
        for place, leaf in enumerate(self.leaves):
            tensors |= {f"adam/{place}/{name}": part for name, part in self.optimizer.state.get(leaf, {}).items()}
        tensors |= {f"streams/{name}/state": stream.get_state() for name, stream in self.streams.items()}
        tensors["order/epoch/state"] = self._order
        tensors["since/values/sum"] = self._since
        for block, estimator in self._learners().items():
            tensors |= {f"learnt/{block}/{name}": leaf for name, leaf in (estimator.state or {}).items()}
        return tensors

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint of these very settings.

        Raises:
            DataError: if it is no whole checkpoint, or one of other settings.
        """
        head, facts = look(path)
        ours = self.settings.model_dump(mode="json")
        if facts["settings"] != ours:
            there, here = _flat(facts["settings"]), _flat(ours)
            changed = [f"{k} {there.get(k)} there, {v} here" for k, v in here.items() if there.get(k) != v]
            raise DataError(f"{path} is of another training ({'; '.join(changed)}); give another --out, or --fresh")
        head.require(self._expected(head.kinds))
        tensors = head.read()
        for block, leaves in nested(tensors, "parameters").items():
            for name, leaf in leaves.items():
                self.parameters[block][name].copy_(leaf)
        kept = nested(tensors, "adam")
        for place, leaf in enumerate(self.leaves):
            # The count of steps stays on the processor, as torch makes it.
            self.optimizer.state[leaf] = {
                name: part if name == "step" else part.to(self.device)
                for name, part in kept.get(str(place), {}).items()
            }
        if not kept:
            self.optimizer.state.clear()
        for name, parts in nested(tensors, "streams").items():
            self.streams[name].set_state(parts["state"])
        self._order, self._rows = tensors["order/epoch/state"], None
        self._since = tensors["since/values/sum"].to(self.device)
        learnt = nested(tensors, "learnt")

        def with_state(estimator: Estimator, block: str) -> Estimator:
            state = {name: leaf.to(self.device) for name, leaf in learnt[block].items()} if block in learnt else None
            return dataclasses.replace(estimator, state=state)

        theta = with_state(self.pair.theta, "theta")
        phi = theta if self.pair.alike else with_state(self.pair.phi, "phi")
        self.pair = dataclasses.replace(self.pair, theta=theta, phi=phi)
        self.step, self.evaluations = facts["step"], facts["evaluations"]
        self.seconds, self.processor_seconds = facts["seconds"], facts["processor_seconds"]
        self.points = facts["points"]
        self.value = float("nan") if facts["value"] is None else facts["value"]

    def _expected(self, there: Mapping[str, Kind]) -> dict[str, Kind]:
        """Names, types and shapes of the tensors of a checkpoint of this training, given what is in one.

        Adam has no memory before the first step. What an estimator learns is its own affair until it has begun.
        """
        expected = {name: Kind.of(leaf) for name, leaf in self._tensors().items() if not name.startswith("adam/")}
        if any(name.startswith("adam/") for name in there):
            for place, leaf in enumerate(self.leaves):
                memory = dict.fromkeys(("exp_avg", "exp_avg_sq"), Kind.of(leaf)) | {"step": Kind(torch.float32, ())}
                expected |= {f"adam/{place}/{name}": kind for name, kind in memory.items()}
        free = {name for block in self._learners() for name in there if name.startswith(f"learnt/{block}/")}
        return expected | {name: there[name] for name in free - expected.keys()}

    def _check(self) -> None:
        """Refuse before the first step what cannot work."""
        if self.settings.matmul_precision != "highest" and self.settings.dtype != "float32":
            raise Refusal(
                f"matmul_precision={self.settings.matmul_precision} is for float32 alone, not {self.settings.dtype}"
            )
        model = self.family.model_of(self.images.held_out[: self.settings.data.batch])
        objective = self.settings.objective
        if objective.another_target:
            require_temperable(self.pair, model, self.parameters, objective.free_bits)
        beta = objective.kl_weight * (0.5 if objective.warm_up_epochs else 1.0)
        model = self._model(self.images.held_out[: self.settings.data.batch], beta)
        if reason := self.pair.refuses(model):
            raise Refusal(reason)
        if self.settings.compile:
            from .compiling import compiled

            self._gradient, said = compiled(
                self.family, self.pair, self.settings, self.parameters, self.images.held_out[: self.settings.data.batch]
            )
            if said:
                self.announced.append(said)


def pair_of(settings: Settings, registry: Registry) -> Pair:
    """The two estimators of an objective."""
    objective = settings.objective
    theta = registry.estimator(objective.theta, objective.num_samples)
    phi = theta
    if objective.phi or objective.phi_num_samples:
        phi = registry.estimator(objective.phi or objective.theta, objective.phi_num_samples or objective.num_samples)
    return Pair(theta, phi, objective.shared)


def trained(path: Path) -> tuple[Family, Parameters, Settings, dict[str, Any]]:
    """Family, parameters, settings and facts of a checkpoint, to evaluate it.

    Raises:
        DataError: if it is none.
    """
    path = path / CHECKPOINT if path.is_dir() else path
    head, facts = look(path)
    try:
        settings, pixels = Settings.model_validate(facts["settings"]), facts["pixels"]
        found = family(settings.model)
        with FakeTensorMode():  # sizes alone: nothing is allocated
            start = found.start(torch.zeros(pixels, dtype=getattr(torch, settings.dtype)), torch.Generator())
    except (ValidationError, SpecError, KeyError, TypeError, RuntimeError) as problem:
        raise DataError(f"{path} is no checkpoint of a training: {str(problem).splitlines()[0][:200]}") from problem
    expected = {f"parameters/{b}/{name}": Kind.of(leaf) for b in BLOCKS for name, leaf in start[b].items()}
    head.require({name: kind for name, kind in head.kinds.items() if not name.startswith("parameters/")} | expected)
    return found, nested(head.read(), "parameters"), settings, facts


def _flat(tree: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        flat |= _flat(value, f"{before}{name}.") if isinstance(value, dict) else {before + name: value}
    return flat


def _moved(parameters: Parameters, device: str, dtype: torch.dtype) -> Parameters:
    return {b: {k: leaf.to(device, dtype).clone() for k, leaf in leaves.items()} for b, leaves in parameters.items()}
