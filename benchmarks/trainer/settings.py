"""What a training is told: a TOML file, or options, as one validated object."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..plan import first_line, read_toml
from ..schema import MatmulPrecision
from ..specs import MOST_SAMPLES, SpecError, nearest

CONFIGS = Path(__file__).parents[1] / "configs"
STAGES = 8
"""Burda et al. (2016): 3^i passes over the data for i = 0 ... 7."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Data(_Section):
    """Which images, how they become binary, and how many are seen at a step."""

    name: str = "digits"
    binarisation: str = "dynamic"
    batch: int = Field(default=100, ge=1)


class Objective(_Section):
    """Which estimator gives which block its gradient.

    ``theta`` and ``phi`` are specifications of registered estimators; an empty ``phi`` is theta's. ``shared``: phi is
    estimated at the samples that theta drew, however many, and not at its own. ``kl_weight`` (what KL(q || prior) counts,
    from the end of the warm-up on), ``warm_up_epochs`` and ``free_bits`` change
    the target (:mod:`benchmarks.trainer.tempering`).
    """

    theta: str = "iwae"
    num_samples: int = Field(default=5, ge=1, le=MOST_SAMPLES)
    phi: str = ""
    phi_num_samples: int = Field(default=0, ge=0, le=MOST_SAMPLES)
    shared: bool = False
    kl_weight: float = Field(default=1.0, ge=0)
    warm_up_epochs: float = Field(default=0.0, ge=0)
    free_bits: float = Field(default=0.0, ge=0)

    @property
    def another_target(self) -> bool:
        """Whether any of the three is asked for."""
        return self.kl_weight != 1 or bool(self.warm_up_epochs or self.free_bits)


class Optimizer(_Section):
    """Adam, and how its rate goes.

    ``burda``: 3^i passes at ``learning_rate`` * 10^(-i/7) for i below ``stages``; ``epochs`` is then of no account.
    ``falling``: constant for half of the epochs, then linearly to zero. ``constant``. ``clip``: the largest norm of each
    block's gradient, 0 for none.
    """

    schedule: Literal["burda", "falling", "constant"] = "falling"
    epochs: int = Field(default=40, ge=1)
    stages: int = Field(default=STAGES, ge=1, le=STAGES)
    learning_rate: float = Field(default=1e-3, gt=0)
    betas: tuple[float, float] = Field(default=(0.9, 0.999), strict=False)  # a list in TOML
    eps: float = Field(default=1e-4, gt=0)
    clip: float = Field(default=0.0, ge=0)

    @property
    def passes(self) -> int:
        """Epochs in all."""
        return sum(3**i for i in range(self.stages)) if self.schedule == "burda" else self.epochs

    def rate(self, step: int, per_epoch: int) -> float:
        """The learning rate of a step, counted from 0, of a training with so many steps in an epoch.

        Example:
            >>> burda = Optimizer(schedule="burda")
            >>> burda.passes, burda.rate(0, 10), round(burda.rate(10, 10), 6), round(burda.rate(32799, 10), 6)
            (3280, 0.001, 0.00072, 0.0001)
        """
        if self.schedule == "constant":
            return self.learning_rate
        if self.schedule == "falling":
            return self.learning_rate * min(1.0, 2 * (1 - step / (self.passes * per_epoch)))
        epoch, stage, until = step // per_epoch, 0, 1
        while epoch >= until and stage < self.stages - 1:
            stage += 1
            until += 3**stage
        return self.learning_rate * 10 ** (-stage / 7)


class Watch(_Section):
    """What is evaluated while it trains: ``points`` times, on ``images`` held-out images, L of ``num_samples``."""

    points: int = Field(default=16, ge=1)
    images: int = Field(default=200, ge=2)
    num_samples: int = Field(default=50, ge=1, le=MOST_SAMPLES)


class Settings(_Section):
    """All of a training. Two trainings of one seed start from the same parameters and see the same images in one order."""

    model: str = "vae"
    seed: int = Field(default=0, ge=0)
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    compile: bool = False
    matmul_precision: MatmulPrecision = "highest"
    data: Data = Data()
    objective: Objective = Objective()
    optimizer: Optimizer = Optimizer()
    watch: Watch = Watch()


def read(path: Path | None, changes: dict[str, Any]) -> Settings:
    """Settings from a file, from one that comes with the suite (``burda``, ``sumo``), or the short default.

    Arguments:
        changes: dotted names to values, such as ``{"data.batch": 20}``; they win over the file.

    Raises:
        SpecError: if there is no such file, or it says what no training has.
    """
    tree: dict[str, Any] = {}
    if path is not None:
        packaged = {file.stem: file for file in sorted(CONFIGS.glob("*.toml"))}
        file = path if path.is_file() else packaged.get(path.stem)
        if file is None:
            raise SpecError(f"no file {path}, and no such config comes with the suite; {nearest(path.stem, packaged)}")
        tree = read_toml(file)
    for name, value in changes.items():
        branch = tree
        *sections, leaf = name.split(".")
        for section in sections:
            branch = branch.setdefault(section, {})
            if not isinstance(branch, dict):
                raise SpecError(f"no setting {name}: {section} is a value here, and has none below it")
        branch[leaf] = value
    try:
        return Settings.model_validate(tree)
    except ValidationError as problem:
        where = f"{path}: " if path is not None else ""
        raise SpecError(f"{where}{first_line(problem, Settings)}") from problem
