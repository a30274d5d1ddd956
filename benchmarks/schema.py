"""What is stored, as data: the identity of a cell, what was measured of it, how a run and a training went.

Plain data, validated on the way in; :mod:`benchmarks.records` reads and writes it. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field

from .index import LONGEST

SCHEMA_VERSION = 5

SHARED = "shared draws"
"""The entry of a cell's versions that says by which arithmetic its estimates share draws with others' (``--share``)."""

Status = Literal["ok", "refused", "error", "timeout", "killed", "nonfinite"]
STATUSES = frozenset(get_args(Status))
Verdict = Literal["PASS", "BIASED", "INCONCLUSIVE", "HEAVY_TAIL", "NONFINITE", "NO_REFERENCE"]
Block = Literal["value", "theta", "phi"]
MatmulPrecision = Literal["highest", "high", "medium"]
"""How float32 matrices are multiplied, in torch's own words. ``highest``: as float32. ``high``: as TF32 or sums of bfloat16,
``medium``: as bfloat16, where the device is faster at these; elsewhere all three are the same."""

TOO_LARGE = 2**63
Whole = Annotated[int, Field(ge=-TOO_LARGE, lt=TOO_LARGE)]
"""Whole numbers of 64 bits, as a table holds them."""


class _Plain(BaseModel):
    # "constants": a NaN within settings is refused by the writer, where pydantic's default would store null.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, ser_json_inf_nan="constants")


class Cell(_Plain):
    """The identity of one measurement: problem, estimator, settings, seed, and the versions of the two components.

    ``problem`` and ``estimator`` are canonical specifications, every parameter spelled out, such as
    ``gaussian-1d[loc=0.5,scale=0.9,x=1.0,prior_loc=0.0]``.
    """

    problem: str
    estimator: str
    num_samples: int = Field(ge=1, lt=TOO_LARGE)  # not a Whole: of two bounds on the same side pydantic heeds one
    replicates: int = Field(ge=2, lt=TOO_LARGE)
    seed: int = Field(ge=0, lt=TOO_LARGE)
    dtype: str = "float64"
    device: str = "cpu"
    compiled: bool = False
    matmul_precision: MatmulPrecision = "highest"
    versions: dict[str, str] = {}

    @property
    def id(self) -> str:
        """A hash of the canonical settings: the same on every machine and in any order."""
        shared = {**self.__dict__, "seed": None, "versions": None}
        before, after = _around_seed(tuple(shared.items()), tuple(self.versions.items()))
        return hashlib.sha256(b"%b%d%b" % (before, self.seed, after)).hexdigest()[:20]


@lru_cache(maxsize=2**12)
def _around_seed(shared: tuple[tuple[str, Any], ...], versions: tuple[tuple[str, str], ...]) -> tuple[bytes, bytes]:
    """The canonical settings before and after the seed, which is all that differs among most cells of a large run."""
    text = canonical_json({**dict(shared), "versions": dict(versions)})
    key = '"seed":'  # within a string, the second of these quotation marks has a backslash before it
    before, _, after = text.partition(key + "null")
    return (before + key).encode(), after.encode()


class BlockResult(_Plain):
    """What was measured of one block of the gradient (``theta``, ``phi``), or of the objective's value (nats).

    Norms are Euclidean over the block's coordinates. ``variance`` is summed over coordinates, of one gradient estimate.
    Intervals are 95 % and ``None`` where they do not exist. All of it is in the units of the objective (nats) per unit of
    the parameters, averaged over data points.
    """

    block: Block
    target: str | None
    target_num_samples: Whole | None = None
    unbiased: bool | None
    dimensions: Whole
    replicates: Whole
    nonfinite: Whole = 0
    mean_norm: float | None = None
    reference_norm: float | None = None
    reference_standard_error: float | None = None
    reference_method: str | None = None
    bias_norm: float | None = None
    bias_interval: tuple[float, float] | None = None
    bias_z: float | None = None
    verdict: Verdict
    verdict_reason: str = ""
    worst_direction: str | None = None
    detectable_bias: float | None = None
    variance: float | None = None
    variance_interval: tuple[float, float] | None = None
    variance_exists: bool = True
    exact_variance: float | None = None
    snr: float | None = None
    snr_interval: tuple[float, float] | None = None
    snr_floor: float | None = None
    snr_slope_theory: float | None = None
    mse: float | None = None
    skewness: float | None = None
    kurtosis: float | None = None
    tail_index: float | None = None
    tail_index_interval: tuple[float, float] | None = None
    quantiles: dict[str, float] | None = None
    median_of_means: float | None = None
    cosine: float | None = None


class Cost(_Plain):
    """What one gradient estimate costs. Seconds are medians over timed chunks, warm-up excluded."""

    evaluations_per_gradient: float | None = None
    flops_per_gradient: float | None = None
    bytes_moved_per_gradient: float | None = None
    seconds_per_gradient: float | None = None
    seconds_interval: tuple[float, float] | None = None
    gradients_per_second: float | None = None
    compile_seconds: float | None = None
    peak_bytes: Whole | None = None
    chunk: Whole | None = None
    allocated_bytes: Whole | None = None
    """The most that a device's allocator held for one chunk; not of a CPU."""
    joules_per_gradient: float | None = None
    """Of the whole board; where NVML answers."""


class Record(_Plain):
    """All that is known of one cell once it has ended, in whichever way it ended."""

    schema_version: int = SCHEMA_VERSION
    id: str
    cell: Cell
    status: Status
    reason: str = ""
    traceback: str = ""
    library: str = "gradest"
    counterpart: str | None = None
    family: str = ""
    summary: str = ""
    citations: list[str] = []
    tail_ratio: float | None = None
    """rho: smallest eigenvalue of Sigma_q^(1/2) P Sigma_q^(1/2), P the posterior precision; 1/2 and 3/4 are thresholds."""
    blocks: list[BlockResult] = []
    cost: Cost = Cost()
    seconds: float = Field(default=0.0, ge=0, le=LONGEST)


class TrainingPoint(_Plain):
    """One evaluation on a training curve. Bounds are in nats per image."""

    step: Whole
    epoch: float
    seconds: float
    train_elbo: float | None = None
    heldout_elbo: float | None = None
    heldout_elbo_standard_error: float | None = None
    heldout_iwae: float | None = None
    heldout_iwae_standard_error: float | None = None
    iwae_num_samples: Whole | None = None
    checkpoint: str | None = None


class TrainingRecord(_Plain):
    """How a VAE that the suite trained came to be."""

    schema_version: int = SCHEMA_VERSION
    id: str
    problem: str
    settings: dict[str, Any]
    parameters: Whole
    points: list[TrainingPoint]


class StudyRecord(_Plain):
    """What a study found: paired trainings (``kind`` iwae), or gradients at frozen points of a training (gradients).

    ``data`` is what :mod:`benchmarks.trainer.findings` or :mod:`benchmarks.trainer.gradients` gives, plain numbers and text.
    """

    schema_version: int = SCHEMA_VERSION
    kind: Literal["iwae", "gradients"]
    data: dict[str, Any]
    citations: list[str] = []


class Manifest(_Plain):
    """What a run was asked to do. ``bibliography`` maps citation keys to BibTeX entries."""

    schema_version: int = SCHEMA_VERSION
    name: str
    command: str
    started: str
    commit: str | None = None
    dirty: bool | None = None
    cells: list[str] = []
    settings: dict[str, Any] = {}
    bibliography: dict[str, str] = {}


def canonical_json(data: Any) -> str:
    """One text for one value: sorted keys, no spaces, no NaN or infinity."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True)
