"""Targets by name, as a user writes them: what an estimator is held against, or what a reference is asked for."""

from __future__ import annotations

from collections.abc import Callable
from typing import get_args

from estimators import Target
from estimators.contract import MULTI_SAMPLE, TargetName

from .references.bounds import DIVERGENCES
from .specs import SpecError, nearest, parse

TARGETS: tuple[str, ...] = get_args(TargetName)
SETTINGS: dict[str, tuple[str, Callable[[float, int], bool]]] = {
    "renyi": ("a number", lambda a, K: True),
    "ciwae": ("a number from 0 to 1", lambda beta, K: 0 <= beta <= 1),
    "jackknife": ("a whole number from 1 to K - 1", lambda m, K: m == int(m) and 1 <= m < K),
    "tvo": ("a whole number from 1", lambda intervals, K: intervals == int(intervals) >= 1),
    "tvo_upper": ("a whole number from 1", lambda intervals, K: intervals == int(intervals) >= 1),
    "relaxed_elbo": ("a number above 0", lambda temperature, K: temperature > 0),
}
"""Targets that are a family with a number for each member: which numbers, in words and as a test. ``f_divergence`` has names."""


def target(text: str, num_samples: int | None) -> Target:
    """A target by name, with its setting in brackets where it has one: ``iwae``, ``renyi[setting=0.5]``.

    Raises:
        SpecError: for an unknown name, or a setting that is missing, not wanted or not allowed.
    """
    name, raw = parse(text)
    if name not in TARGETS:
        raise SpecError(f"no target {name!r}; {nearest(name, TARGETS)}")
    K = num_samples if name in MULTI_SAMPLE else None
    setting: float | str | None = None
    if name in SETTINGS or name == "f_divergence":
        if set(raw) != {"setting"}:
            raise SpecError(f"target {name} takes {name}[setting=...], not {text!r}")
        setting = _setting(name, raw["setting"], num_samples or 1)
    elif raw:
        raise SpecError(f"target {name} takes no setting, not {text!r}")
    return Target(name, K, setting=setting)  # type: ignore[arg-type]


def takes_samples(text: str) -> bool:
    """Whether a target is another quantity for every number of samples."""
    return parse(text)[0] in MULTI_SAMPLE


def _setting(name: str, text: str, num_samples: int) -> float | str:
    if name == "f_divergence":
        if text not in DIVERGENCES:
            raise SpecError(f"target f_divergence: no divergence {text!r}; {nearest(text, DIVERGENCES)}")
        return text
    words, allowed = SETTINGS[name]
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if number - number != 0 or not allowed(number, num_samples):
        K = f" (K is {num_samples})" if "K" in words else ""
        raise SpecError(f"target {name}: setting must be {words}{K}, not {text!r}")
    return number
