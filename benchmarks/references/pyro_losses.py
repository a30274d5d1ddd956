"""Pyro's losses as estimators of this suite, by name. Importing this module does not import Pyro."""

from __future__ import annotations

from .pyro_compiled import (
    PyroJitTraceELBO,
    PyroJitTraceEnumELBO,
    PyroJitTraceGraphELBO,
    PyroJitTraceMeanFieldELBO,
)
from .pyro_loss import PyroLoss
from .pyro_multi_sample import PyroRenyiELBO, PyroReweightedWakeSleep, PyroTraceTailAdaptiveELBO, PyroTraceTMCELBO
from .pyro_one_sample import (
    PyroTraceELBO,
    PyroTraceEnumELBO,
    PyroTraceGraphELBO,
    PyroTraceMeanFieldELBO,
)

LOSSES: tuple[type[PyroLoss], ...] = (
    PyroTraceELBO,
    PyroTraceGraphELBO,
    PyroTraceMeanFieldELBO,
    PyroTraceEnumELBO,
    PyroJitTraceELBO,
    PyroJitTraceGraphELBO,
    PyroJitTraceMeanFieldELBO,
    PyroJitTraceEnumELBO,
    PyroRenyiELBO,
    PyroReweightedWakeSleep,
    PyroTraceTailAdaptiveELBO,
    PyroTraceTMCELBO,
)

__all__ = ["LOSSES", "PyroLoss", *(kind.__name__ for kind in LOSSES)]
