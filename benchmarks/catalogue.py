"""Plain data about components, for ``list``, ``check --json`` and ``reference --json``."""

from __future__ import annotations

from dataclasses import MISSING, Field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from estimators import BLOCKS, Parameters, Target

from .outside import shown
from .problems import Problem
from .registry import Registry
from .schema import canonical_json
from .specs import SpecError, settings_of

if TYPE_CHECKING:
    from .check import Checked


def catalogue(registry: Registry, what: str) -> list[dict[str, Any]]:
    """One row per component: names, targets, needs, a line."""
    if what == "problems":
        return [
            {
                "name": name,
                "exact_targets": _listed(kind, "exact_targets"),
                "offers": sorted(_listed(kind, "offers")),
                "parameters": {key: _default(field) for key, field in settings_of(kind).items()},
                "summary": kind.summary,
                "citations": list(kind.citations),
                "line": f"{kind.summary} [exact: {', '.join(_listed(kind, 'exact_targets')) or 'none'}]",
            }
            for name, kind in registry.problems.items()
        ]
    rows = []
    for name, kind in registry.estimators.items():
        estimator = registry.estimator(name, kind.usual_num_samples())
        targets = {block: None if target is None else target.name for block, target in estimator.targets.items()}
        unbiased = {block: None if t is None else t.unbiased for block, t in estimator.targets.items()}
        claims = ", ".join(
            f"{block} {targets[block]}{'' if unbiased[block] else ' (biased)'}" if targets[block] else f"{block} none"
            for block in BLOCKS
        )
        summary = (kind.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")
        rows.append(
            {
                "name": name,
                "targets": targets,
                "unbiased": unbiased,
                "needs": sorted(estimator.needs),
                "min_num_samples": kind.min_num_samples,
                "variance_exists": estimator.variance_exists,
                "family": estimator.family,
                "library": getattr(kind, "library", "gradest"),
                "summary": summary,
                "citations": list(kind.citations),
                "line": f"{summary} [{claims}]",
            }
        )
    return rows


def _listed(kind: type[Problem], attribute: str) -> list[str]:
    """What a problem's class states; what only an instance would know is left out."""
    stated = getattr(kind, attribute)
    return [] if isinstance(stated, property) else list(stated)


def _default(setting: Field[Any]) -> Any:
    """What a setting is unless it is given: null where it has to be, and as text where it is no plain value."""
    if setting.default is MISSING:
        return None
    return setting.default if isinstance(setting.default, bool | int | float | str) else shown(setting.default)


def finding_row(checked: Checked) -> dict[str, Any]:
    """A finding as plain data; numbers that do not exist are null."""
    finding = checked.finding
    return {
        "problem": checked.problem,
        "num_samples": checked.num_samples,
        "targets": checked.targets,
        "outcome": finding.outcome,
        "reason": finding.reason,
        "draws": finding.draws,
        "direction": finding.direction or None,
        "bias": _finite(finding.bias),
        "standard_error": _finite(finding.standard_error),
        "effect": _finite(finding.effect),
        "exact": _finite(finding.exact),
        "evidence": finding.evidence,
    }


def _finite(number: float) -> float | None:
    return number if number - number == 0 else None


def reference_row(problem: Problem, target: Target) -> dict[str, Any]:
    """The exact value and gradient of a target as plain data, beside the parameters and data that it belongs to.

    Raises:
        SpecError: if the problem does not know it, or its settings are beyond what floating point holds.
    """
    from .check import exact  # with it comes scipy.stats, which ``list`` need not wait for

    try:
        with np.errstate(all="ignore"):  # what overflows is told below, in one line
            found = exact(problem, target)
    except (ArithmeticError, ValueError) as wrong:
        raise SpecError(f"{problem.spec}: {target} cannot be computed: {wrong}") from wrong
    if found is None and target.name in problem.exact_targets:
        raise SpecError(f"{problem.spec} does not know {target} exactly: {_why_not(problem, target)}")
    if found is None:
        raise SpecError(f"{problem.name} does not know {target.name} exactly; it knows: "
                        f"{', '.join(problem.exact_targets) or 'nothing'}")  # fmt: skip
    row = {
        "problem": problem.spec,
        "target": target.name,
        "num_samples": target.num_samples,
        "value": found.value,
        "gradient": _plain(found.gradient),
        "standard_error": 0,
        "method": found.method,
        "parameters": _plain(problem.parameters),
        "data": problem.data.tolist(),
    }
    try:
        canonical_json(row)
    except ValueError:
        raise SpecError(f"{problem.spec}: {target} is not finite") from None
    return row


def _why_not(problem: Problem, target: Target) -> str:
    """Of a target that the problem knows in principle."""
    from .check import exact

    least = int(target.setting or 1) if target.name == "jackknife" else 0  # beyond which a bound of this kind has its K
    known, unknown = least, target.num_samples or 1
    while unknown - known > 1:  # the largest K that is known: first by doubling, then by halving
        tried = min(2 * known + 1, (known + unknown) // 2)
        if exact(problem, replace(target, num_samples=tried)) is None:
            unknown = tried
        else:
            known = tried
    if known > least:
        return f"K = {known} is the largest at which its sum or quadrature can be had here"
    return "its mean does not exist, or the quadrature has not settled"


def _plain(tree: Parameters) -> dict[str, dict[str, Any]]:
    def listed(leaf: Tensor) -> Any:
        return leaf.tolist() if leaf.ndim else [leaf.item()]

    return {block: {name: listed(leaf) for name, leaf in leaves.items()} for block, leaves in tree.items()}
