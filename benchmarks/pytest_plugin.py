"""Fixtures for anyone's own test suite. pytest finds this module by itself where gradest is installed.

``assert_unbiased(estimator, problems)`` fails unless the estimator is shown to be unbiased for what it declares;
``gradient_moments(estimator, problem, replicates=...)`` gives means and variances. Importing this module imports no torch:
a suite that uses neither fixture pays nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .notebook import Moments, Verdict


@pytest.fixture
def assert_unbiased() -> Callable[..., Verdict]:
    """``assert_unbiased(estimator, problems=PANEL, num_samples=None, target=None, seed=0)``.

    ``estimator`` is a name, ``FILE.py:NAME``, or an instance; ``problems`` are specifications or instances. A right
    estimator fails with probability at most 1e-9; no verdict (too noisy, no variance) fails too, and says so.
    """
    from .notebook import check

    def assert_(estimator: Any, problems: Any = None, **settings: Any) -> Verdict:
        verdict = check(estimator, **settings) if problems is None else check(estimator, problems, **settings)
        if verdict.exit != 0:
            raise AssertionError(
                f"{verdict!r}" if len(verdict) else "no problem knows the exact gradient of what it declares"
            )
        return verdict

    return assert_


@pytest.fixture
def gradient_moments() -> Callable[..., Moments]:
    """``gradient_moments(estimator, problem, replicates=2000, seed=0)``: means and variances of gradient estimates."""
    from .notebook import moments

    return moments
