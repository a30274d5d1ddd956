"""Training of latent-variable models by any pair of estimators: settings, sessions, checkpoints, evaluation, studies."""

from __future__ import annotations

from ..problems.family import Family
from .families import FAMILIES, family
from .pairing import Pair
from .session import Session, trained
from .settings import Settings, read

__all__ = ["FAMILIES", "Family", "Pair", "Session", "Settings", "family", "read", "trained"]
