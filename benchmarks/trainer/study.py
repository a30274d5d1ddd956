"""Does the tighter bound, or the less noisy gradient, train a better model? Paired trainings of several estimators.

Every arm trains the same network from the same start on the same images in the same order, once for each seed; a finished
training is one file of a folder and is not done again. What is compared are held-out bounds of what came out, paired over
seeds, and held-out curves at equal numbers of evaluations and at equal seconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..records import pretty, write_text
from .settings import Settings

ARMS: dict[str, dict[str, Any]] = {
    "elbo-5": {"theta": "reparameterization", "num_samples": 5},
    "iwae-5": {"theta": "iwae", "num_samples": 5},
    "stl-5": {"theta": "sticking-the-landing", "num_samples": 5},
    "dreg-5": {"theta": "dreg", "num_samples": 5},
    "rws-5": {"theta": "reweighted-wake-sleep", "num_samples": 5},
    "iwae-6": {"theta": "iwae", "num_samples": 6},
    "sumo": {"theta": "sumo", "num_samples": 1},
    "sumo, q by iwae": {"theta": "sumo", "num_samples": 1, "phi": "iwae", "shared": True},
    "ml-rr, q by iwae": {"theta": "multilevel-russian-roulette", "num_samples": 1, "phi": "iwae", "shared": True},
}
"""SUMO takes 6.08 samples on average, the multilevel estimator 6: both stand beside IWAE with 6."""
FIRST = ("elbo-5", "iwae-5", "dreg-5")
"""What the study is about comes first, with all its seeds."""
CLIPPED = ("sumo", "ml-rr")
CLIP = 100.0


@dataclass(frozen=True)
class Plan:
    """How much: 5 seeds, 60 epochs, and L_1000 on 500 held-out images take less than 20 minutes on two free cores."""

    arms: tuple[str, ...] = tuple(ARMS)
    seeds: int = 5
    epochs: int = 60
    images: int = 500
    num_samples: int = 1000
    model: str = "vae"
    data: str = "digits"
    folder: str = ""

    def settings(self, arm: str, seed: int) -> Settings:
        """Of one training."""
        clip = CLIP if arm.startswith(CLIPPED) else 0.0
        return Settings.model_validate(
            {
                "model": self.model,
                "seed": seed,
                "data": {"name": self.data, "batch": 100},
                "objective": ARMS[arm],
                "optimizer": {"epochs": self.epochs, "learning_rate": 3e-3, "clip": clip},
                "watch": {"points": 20, "images": 200, "num_samples": 50},
            }
        )


def run(plan: Plan, out: Path, jobs: int, told: Callable[[int, int, str], None]) -> list[dict[str, Any]]:
    """Every arm with every seed, seeds outermost so that a study cut short is still paired; results in that order."""
    groups = ([arm for arm in plan.arms if (arm in FIRST) == first] for first in (True, False))
    cells = [(arm, seed) for arms in groups for seed in range(plan.seeds) for arm in arms]
    missing = [cell for cell in cells if _stored(out, plan, *cell) is None]
    told(len(cells) - len(missing), len(cells), "")
    done = len(cells) - len(missing)
    for name in _each(plan, out, missing, jobs):
        done += 1
        told(done, len(cells), name)
    return [found for cell in cells if (found := _stored(out, plan, *cell)) is not None]


def _each(plan: Plan, out: Path, cells: list[tuple[str, int]], jobs: int) -> Iterator[str]:
    if jobs == 1:
        for arm, seed in cells:
            yield _one(plan, out, arm, seed)
        return
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"  # of the children: more threads than cores make all of them wait
    try:
        with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
            futures = [pool.submit(_one, plan, out, *cell) for cell in cells]
            try:
                for future in as_completed(futures):
                    yield future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                for child in multiprocessing.active_children():
                    child.terminate()
                raise
    finally:
        os.environ.pop("OMP_NUM_THREADS") if before is None else os.environ.__setitem__("OMP_NUM_THREADS", before)


def _one(plan: Plan, out: Path, arm: str, seed: int) -> str:
    """One training and its evaluation, stored."""
    import torch

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
        x = session.images.held_out[: plan.images]
        found |= {
            "likelihood": assess.likelihood(session.family, session.parameters, x, plan.num_samples, seed=0),
            "active_units": assess.units(session.family, session.parameters, session.images.held_out),
        }
    except TrainingError as problem:
        found["failed"] = str(problem)
    found |= {"points": session.points, "processor_seconds": time.process_time() - began}
    write_text(_place(out, arm, seed), pretty(found))
    return f"{arm}, seed {seed}"


def _identity(plan: Plan) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in ("epochs", "images", "num_samples", "model", "data")}


def _place(out: Path, arm: str, seed: int) -> Path:
    return out / "trainings" / f"{arm.replace(', ', '-').replace(' ', '-')}-{seed}.json"


def _stored(out: Path, plan: Plan, arm: str, seed: int) -> dict[str, Any] | None:
    try:
        found = json.loads(_place(out, arm, seed).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.get("plan") == _identity(plan) else None
