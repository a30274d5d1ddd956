"""What a problem is: a latent-variable model at given parameters, and what is exactly known of its gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from estimators import Estimator, LatentModel, Parameters, Target

from ..schema import TrainingRecord
from ..specs import SpecError, canonical

if TYPE_CHECKING:
    from ..training import Progress


@dataclass(frozen=True)
class Reference:
    """The exact value (nats, mean over data points) and gradient of a target.

    ``gradient`` lacks a block that the target does not depend on or is not known for (theta of ``forward_kl``).
    """

    value: float
    gradient: Parameters
    method: str


@dataclass(frozen=True)
class Problem(LatentModel):
    """Abstract. The positional fields of a subclass are its identity; ``dtype`` and ``device`` say where it lives.

    Subclasses set ``name``, ``offers`` and ``summary``, and give ``parameters``, ``log_joint`` and ``guide``.
    """

    dtype: str = field(default="float64", kw_only=True)
    device: str = field(default="cpu", kw_only=True)

    name: ClassVar[str]
    summary: ClassVar[str] = ""
    version: ClassVar[str] = "1"
    citations: ClassVar[tuple[str, ...]] = ()
    exact_targets: ClassVar[tuple[str, ...]] = ()
    wants_settings: ClassVar[bool] = False
    """Whether it is nothing without settings, and so is never meant by ``*``."""
    compared: ClassVar[bool] = False
    """Whether estimators are checked here against one another, for want of anything exact."""

    def __post_init__(self) -> None:
        self.validate()
        # Made here and not on first use: a tensor made inside a functorch transform must not outlive it.
        _ = self.data

    def validate(self) -> None:
        """Refuse settings that make no sense (:meth:`require`)."""

    @property
    def spec(self) -> str:
        """The canonical specification, every parameter spelled out."""
        return canonical(self)

    @property
    def parameters(self) -> Parameters:
        """Where the gradients are measured: ``{"theta": {...}, "phi": {...}}``."""
        raise NotImplementedError

    @property
    def data(self) -> Tensor:
        """x, ``(points, data_dim)``."""
        raise NotImplementedError

    @property
    def tail_ratio(self) -> float | None:
        """rho, the smallest eigenvalue of Sigma_q^(1/2) P Sigma_q^(1/2) with P the posterior precision, where known."""
        return None

    def exact(self, target: Target) -> Reference | None:
        """The exact value and gradient of a target, or ``None`` where this problem does not know them."""
        return None

    def faults(self, estimator: Estimator) -> list[str]:
        """Sentences on derivatives of the model that are not those of its values, where they mislead an estimator."""
        return []

    def reference(self, target: Target, found: Mapping[str, Any], method: str) -> Reference:
        """A reference from numbers by parameter name, and ``value``; targets of phi alone have none for theta."""
        gradient = {
            block: {name: self.tensor(found[name]).reshape(leaf.shape) for name, leaf in leaves.items()}
            for block, leaves in self.parameters.items()
            if block == "phi" or target.name not in ("forward_kl", "sleep")
        }
        return Reference(float(found["value"]), gradient, method)

    def exact_variance(self, estimator: str, num_samples: int, block: str) -> float | None:
        """The exact variance, summed over the block, of one estimate by a named estimator, where known."""
        return None

    def prepare(self, progress: Progress | None = None) -> None:
        """Do what takes long and is done once, such as training, before anything is measured."""

    def training_record(self) -> TrainingRecord | None:
        """How the parameters were trained, or ``None`` where they were not."""
        return None

    def pictures(self) -> dict[str, np.ndarray] | None:
        """What the trained model looks like (:func:`benchmarks.evaluation.pictures.album`), or ``None``."""
        return None

    def tensor(self, values: object) -> Tensor:
        """A tensor of this problem's dtype on its device."""
        return torch.as_tensor(values, dtype=getattr(torch, self.dtype), device=self.device)

    def require(self, condition: bool, message: str) -> None:
        """Refuse settings that make no sense, in one line that names the problem."""
        if not condition:
            raise SpecError(f"{self.name}: {message}")
