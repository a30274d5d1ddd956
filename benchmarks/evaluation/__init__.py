"""How good a model and a guide are, once trained: log p(x) by several roads, active units, and where the bound is lost."""

from __future__ import annotations

from .annealing import Annealing, annealed_importance_sampling, bidirectional
from .coding import Code, lossy_code
from .corrected import CorrectedBounds, corrected_bounds
from .gaps import Gaps, variational_gaps
from .likelihood import Likelihood, active_units, importance_sampling
from .refinement import Refined, corrected, hamiltonian, langevin

__all__ = [
    "Annealing",
    "Code",
    "CorrectedBounds",
    "Gaps",
    "Likelihood",
    "Refined",
    "active_units",
    "annealed_importance_sampling",
    "bidirectional",
    "corrected",
    "corrected_bounds",
    "hamiltonian",
    "importance_sampling",
    "langevin",
    "lossy_code",
    "variational_gaps",
]
