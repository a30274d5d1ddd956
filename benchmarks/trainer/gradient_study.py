"""Gradients where a training stands at its start, early, converged, over-trained, and collapsed; or at given checkpoints.

Each state is trained once and kept; each estimator at each state is one file, and is not measured again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..files import write_text
from ..records import pretty
from ..schema import canonical_json
from .gradients import Design
from .pool import each
from .settings import Settings

STATES = ("initial", "early", "converged", "over-trained", "collapsed")
ESTIMATORS = (
    "score-function", "leave-one-out", "reparameterization", "reparameterization-analytic-kl", "sticking-the-landing",
    "vimco", "iwae", "iwae-stl", "dreg", "reweighted-wake-sleep",
)  # fmt: skip
NUM_SAMPLES = (1, 8, 64, 512)
OVER = 5
"""An over-trained state has seen the images so many times more often than a converged one, at a rate that never falls."""

WATCHED = 200
"""Held-out images that a state's bounds are of."""
HEAVY = 30.0
"""What KL(q || prior) counts on the way to a collapsed state: more than any latent is worth, so q becomes the prior. Its
gradients are measured as those of the plain bounds."""


@dataclass(frozen=True)
class GradientPlan:
    """Ten estimators at four K in five states take about ten minutes on two free cores.

    ``checkpoints``: name and path of each, in place of the states that are trained here.
    """

    estimators: tuple[str, ...] = ESTIMATORS
    num_samples: tuple[int, ...] = NUM_SAMPLES
    design: Design = field(default_factory=Design)
    states: tuple[str, ...] = STATES
    model: str = "vae[hidden=100,latent=50]"
    data: str = "digits"
    epochs: int = 40
    seed: int = 0
    folder: str = ""
    plugins: tuple[str, ...] = ()
    checkpoints: tuple[tuple[str, str], ...] = ()

    def training(self, state: str) -> Settings:
        """What leads to a state."""
        objective: dict[str, Any] = {"theta": "reparameterization", "num_samples": 1}
        optimizer: dict[str, Any] = {"epochs": self.epochs}
        if state == "over-trained":
            optimizer = {"epochs": OVER * self.epochs, "schedule": "constant"}
        if state == "collapsed":
            objective["kl_weight"], optimizer["epochs"] = HEAVY, max(1, self.epochs // 4)
        return Settings.model_validate(
            {
                "model": self.model,
                "seed": self.seed,
                "data": {"name": self.data},
                "objective": objective,
                "optimizer": {"learning_rate": 3e-3, **optimizer},
                "watch": {"points": 4, "images": 200, "num_samples": 50},
            }
        )

    def until(self, state: str) -> float | None:
        """After how many epochs a training is left."""
        return {"initial": 0.0, "early": max(1.0, self.epochs / 20)}.get(state)


def run(plan: GradientPlan, out: Path, jobs: int, told: Callable[[int, int, str], None]) -> dict[str, Any]:
    """States, then every estimator in each of them; all that is known, as plain data."""
    states = dict(plan.checkpoints) or {state: str(out / "states" / state) for state in plan.states}
    cells = [(state, path, estimator) for state, path in states.items() for estimator in plan.estimators]
    training = [] if plan.checkpoints else list(states.items())
    total = len(training) + len(cells)
    told(0, total, "")
    # The longest training first: no other waits for it then.
    training.sort(key=lambda state: -plan.training(state[0]).optimizer.passes)
    for done, name in enumerate(each(reach, [(plan, *state) for state in training], jobs), 1):
        told(done, total, name)
    missing = [cell for cell in cells if _stored(out, plan, *cell) is None]
    begun = total - len(missing)
    for done, name in enumerate(each(_measure, [(plan, out, *cell) for cell in missing], jobs), 1):
        told(begun + done, total, name)
    rows, refused = [], []
    for cell in cells:
        found = _stored(out, plan, *cell)
        if found is not None:
            rows += found["rows"]
            refused += found["refused"]
    return {
        "plan": {**asdict(plan), "checkpoints": [name for name, _ in plan.checkpoints], "folder": ""},
        "states": [_facts(state, path, plan) for state, path in states.items()],
        "rows": rows,
        "refused": refused,
    }


def reach(plan: GradientPlan, state: str, path: str) -> str:
    """Train to a state, unless it is there already."""
    import torch

    from .session import CHECKPOINT, Session

    torch.set_num_threads(1)
    session = Session(plan.training(state), _images(plan))
    if (Path(path) / CHECKPOINT).exists():
        session.restore(Path(path) / CHECKPOINT)
    until = plan.until(state)
    session.run(Path(path), until=None if until is None else round(until * session.per_epoch))
    return f"trained: {state}"


def _measure(plan: GradientPlan, out: Path, state: str, path: str, spec: str) -> str:
    """One estimator at every K in one state, stored."""
    import torch

    from estimators import Refusal, replicates

    from ..registry import Registry
    from ..streams import generator
    from . import gradients
    from .session import trained

    torch.set_num_threads(1)
    registry = Registry(plan.plugins)
    family, parameters, *_ = trained(Path(path))
    images = _images(plan).train.to(next(iter(parameters["theta"].values())).dtype)
    known: dict[tuple[str, int], Any] = {}
    rows, refused = [], []
    for K in plan.num_samples:
        try:
            estimator = registry.estimator(spec, K)
            model = gradients.first_model(family, parameters, images, estimator, plan.design)
            if reason := estimator.refuses(model):
                raise Refusal(reason)
        except Refusal as refusal:
            refused.append({"state": state, "estimator": spec, "num_samples": K, "reason": str(refusal)})
            continue
        learning = generator("cpu", "gradients", plan.design.seed, "warm-up", K)
        estimator = replicates.warmed_up(estimator, model, parameters, learning)
        references = {}
        for block in ("theta", "phi"):
            quiet = gradients.reference_of(estimator, block, model, registry)
            key = (quiet.label(), quiet.num_samples)
            if key not in known:
                known[key] = gradients.long_run(family, parameters, images, quiet, plan.design)
            references[block] = known[key]
        found = gradients.measured(family, parameters, images, estimator, plan.design, references)
        shared = {"state": state, "estimator": spec} | {k: v for k, v in found.items() if k != "layers"}
        rows += [{**shared, **row} for row in found["layers"]]
    body = {"plan": _identity(plan, path), "rows": rows, "refused": refused}
    write_text(_place(out, state, spec), pretty(body))
    return f"{spec}, {state}"


def _images(plan: GradientPlan) -> Any:
    from ..images import load

    return load(plan.data, folder=Path(plan.folder) if plan.folder else None)


def _facts(state: str, path: str, plan: GradientPlan) -> dict[str, Any]:
    """What a state is: how it came about, and what its model is worth."""
    from ..streams import generator
    from . import assess
    from .session import trained

    family, parameters, settings, facts = trained(Path(path))
    held_out = _images(plan).held_out.to(next(iter(parameters["theta"].values())).dtype)
    stream = generator("cpu", "gradients", "state")
    bounds = assess.bounds(family, parameters, held_out[:WATCHED], 50, stream)
    objective = settings.objective
    how = f"{objective.theta}, K = {objective.num_samples}, {facts['step']} of {facts['steps']} steps"
    how += f", KL times {objective.kl_weight:g}" if objective.kl_weight != 1 else ""
    return {
        "state": state,
        "model": settings.model,
        "trained": f"{how}, {settings.optimizer.schedule} rate",
        **{name: bounds[f"heldout_{name}"] for name in ("elbo", "bound")},
        "active_units": assess.units(family, parameters, held_out),
    }


def _identity(plan: GradientPlan, path: str) -> dict[str, Any]:
    """What the numbers of a file depend on."""
    known = {name: value for name, value in asdict(plan).items() if name not in ("estimators", "states", "checkpoints")}
    if plan.checkpoints:
        known["checkpoint"] = hashlib.sha256(_checkpoint(path).read_bytes()).hexdigest()
    return json.loads(canonical_json(known))  # type: ignore[no-any-return]


def _checkpoint(path: str) -> Path:
    from .session import CHECKPOINT

    return Path(path) / CHECKPOINT if Path(path).is_dir() else Path(path)


def _place(out: Path, state: str, spec: str) -> Path:
    name = hashlib.sha256(f"{state} {spec}".encode()).hexdigest()[:12]
    return out / "gradients" / f"{name}.json"


def _stored(out: Path, plan: GradientPlan, state: str, path: str, spec: str) -> dict[str, Any] | None:
    try:
        found = json.loads(_place(out, state, spec).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if found.get("plan") == _identity(plan, path) else None
