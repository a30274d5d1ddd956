"""Does the tighter bound, or the less noisy gradient, train a better model? Paired trainings of several estimators.

Every arm trains the same network from the same start on the same images in the same order, once for each seed; a finished
training is one file of a folder and is not done again. What is compared are held-out bounds of what came out, paired over
seeds, and held-out curves at equal numbers of evaluations and at equal seconds.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..files import write_text
from ..records import pretty
from .pool import each
from .settings import Settings

ARMS: dict[str, dict[str, Any]] = {
    "elbo-5": {"theta": "reparameterization", "num_samples": 5},
    "iwae-5": {"theta": "iwae", "num_samples": 5},
    "dreg-5": {"theta": "dreg", "num_samples": 5},
    "iwae-6": {"theta": "iwae", "num_samples": 6},
    "sumo": {"theta": "sumo", "num_samples": 1},
    "sumo, q by iwae": {"theta": "sumo", "num_samples": 1, "phi": "iwae", "shared": True},
    "ml-rr, q by iwae": {"theta": "multilevel-russian-roulette", "num_samples": 1, "phi": "iwae", "shared": True},
    "stl-5": {"theta": "sticking-the-landing", "num_samples": 5},
    "rws-5": {"theta": "reweighted-wake-sleep", "num_samples": 5},
}
"""SUMO takes 6.08 samples on average, the multilevel estimator 6: both stand beside IWAE with 6."""
MORE = ("stl-5", "rws-5")
"""Trained only where all arms are asked for."""
FIRST = ("elbo-5", "iwae-5", "dreg-5")
"""What the study is about comes first, with all its seeds, and is evaluated with five times the samples as well."""
CLOSELY = ("elbo-5", "iwae-5")
"""Of these the first seed's model is looked at closely: gaps, pictures, and a model of two latents beside it."""
PLANE, PLANE_MODEL = "plane ", "vae[hidden=200,latent=2]"
CITATIONS = ("burda2016", "luo2020", "shi2021", "tucker2019", "cremer2018")
CLIPPED = ("sumo", "ml-rr")
CLIP = 100.0


@dataclass(frozen=True)
class Plan:
    """How much: 37 trainings of 80 epochs and L_1000 on 500 held-out images take some 1,750 processor seconds, fifteen
    minutes on two cores.

    The network has half of Burda's width: with 200 units the bounds train equally good models of so few images. It was
    chosen, with the number of epochs, on seeds and held-out images (the last 500) that the study does not use.
    """

    arms: tuple[str, ...] = tuple(arm for arm in ARMS if arm not in MORE)
    seeds: int = 5
    epochs: int = 80
    images: int = 500
    num_samples: int = 1000
    model: str = "vae[hidden=100,latent=50]"
    data: str = "digits"
    folder: str = ""
    close_images: int = 10

    def settings(self, arm: str, seed: int) -> Settings:
        """Of one training."""
        clip = CLIP if arm.startswith(CLIPPED) else 0.0
        return Settings.model_validate(
            {
                "model": PLANE_MODEL if arm.startswith(PLANE) else self.model,
                "seed": seed,
                "data": {"name": self.data, "batch": 100},
                "objective": ARMS[arm.removeprefix(PLANE)],
                "optimizer": {"epochs": self.epochs, "learning_rate": 3e-3, "clip": clip},
                "watch": {"points": 20, "images": 200, "num_samples": 50},
            }
        )

    def cells(self) -> list[tuple[str, int]]:
        """Arms and seeds in the order of training: seeds outermost, so that a study cut short is still paired."""
        groups = ([arm for arm in self.arms if (arm in FIRST) == first] for first in (True, False))
        cells = [(arm, seed) for arms in groups for seed in range(self.seeds) for arm in arms]
        looked = [(PLANE + arm, 0) for arm in self.arms if arm in CLOSELY and self.close_images]
        return cells[: self.seeds * len(FIRST)] + looked + cells[self.seeds * len(FIRST) :]


def run(plan: Plan, out: Path, jobs: int, told: Callable[[int, int, str], None]) -> list[dict[str, Any]]:
    """Every training of a plan, as results in the order of :meth:`Plan.cells`; those that ``out`` has are not done again."""
    cells = plan.cells()
    missing = [cell for cell in cells if _stored(out, plan, *cell) is None]
    told(len(cells) - len(missing), len(cells), "")
    done = len(cells) - len(missing)
    for name in each(_one, [(plan, out, *cell) for cell in missing], jobs):
        done += 1
        told(done, len(cells), name)
    return [found for cell in cells if (found := _stored(out, plan, *cell)) is not None]


def _one(plan: Plan, out: Path, arm: str, seed: int) -> str:
    """One training and its evaluation, stored."""
    import torch

    from ..evaluation import pictures
    from ..images import load
    from ..runner import keep_freed_memory
    from ..training import TrainingError
    from . import assess
    from .session import Session

    torch.set_num_threads(1)
    keep_freed_memory()
    began = time.process_time()
    settings = plan.settings(arm, seed)
    images = load(plan.data, folder=Path(plan.folder) if plan.folder else None)
    session = Session(settings, images)
    found: dict[str, Any] = {
        "arm": arm,
        "seed": seed,
        "plan": _identity(plan),
        "targets": session.targets(),
        "failed": None,
    }
    try:
        session.run()
        where = (session.family, session.parameters)
        x = session.images.held_out[: plan.images]
        found |= {
            "likelihood": assess.likelihood(*where, x, plan.num_samples, seed=0),
            "active_units": assess.units(*where, session.images.held_out),
        }
        if arm in FIRST:
            few = x[: max(2, len(x) // 5)]
            found["more_samples"] = assess.likelihood(*where, few, 5 * plan.num_samples, seed=0)
        if seed == 0 and arm.removeprefix(PLANE) in CLOSELY and plan.close_images:
            pictures.store(_album(out, arm), pictures.album(*where, x))
            if not arm.startswith(PLANE):
                found["close"] = _close(*where, x[: plan.close_images], plan)
    except TrainingError as problem:
        found["failed"] = str(problem)
    found |= {"points": session.points, "processor_seconds": time.process_time() - began}
    write_text(_place(out, arm, seed), pretty(found))
    return f"{arm}, seed {seed}"


def _close(family: Any, parameters: Any, x: Any, plan: Plan) -> dict[str, Any]:
    """Where the bound of a few images is lost, and what q_IW of five samples gains."""
    from . import assess

    shapes = ("diagonal", "full-rank", *(("flow",) if importlib.util.find_spec("zuko") else ()))
    steps = min(500, 10 * plan.num_samples)
    return assess.lost(family, parameters, x, 5 * plan.num_samples, shapes, 5, steps, seed=0)


def _identity(plan: Plan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in ("epochs", "images", "num_samples", "model", "data", "close_images")}


def _slug(arm: str) -> str:
    return arm.replace(", ", "-").replace(" ", "-")


def _place(out: Path, arm: str, seed: int) -> Path:
    return out / "trainings" / f"{_slug(arm)}-{seed}.json"


def _album(out: Path, arm: str) -> Path:
    return out / "pictures" / f"{_slug(arm)}.safetensors"


def _stored(out: Path, plan: Plan, arm: str, seed: int) -> dict[str, Any] | None:
    try:
        found = json.loads(_place(out, arm, seed).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.get("plan") == _identity(plan) else None
