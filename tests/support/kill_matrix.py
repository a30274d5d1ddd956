"""The kill matrix: which planted defect was caught by which tier, printed when the tests end.

Every process appends what it saw to a folder of this run, so the table is whole however the tests are spread.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections import Counter, defaultdict
from pathlib import Path

import torch

from benchmarks.bias_matrix import PIECEWISE
from benchmarks.check import exact
from estimators import BLOCKS, Estimator
from estimators.quadrature import exact_expectation

FOLDER = "GRADEST_KILL_MATRIX"
EXACTLY = 1e-5
"""Relative distance from the truth beyond which an exact expectation kills."""


def open_folder() -> None:
    """To be called once, by the process that will print."""
    os.environ[FOLDER] = tempfile.mkdtemp(prefix="kill-matrix-")


def note(estimator: Estimator, seed: int, problems: list, caught: bool) -> None:
    """Remember one verdict of the sequential test, and at the first seed whether the exact expectation sees it too."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return
    where = os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0:-1]
    row = {"test": " ".join(where), "base": estimator.label(), "seed": seed, "sampled": caught}
    if seed == 0:
        row["exact"] = exactly(estimator, problems)
    Path(folder).mkdir(exist_ok=True)  # what prints may have been quicker
    with (Path(folder) / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def exactly(estimator: Estimator, problems: list) -> bool | None:
    """Whether the exact expectation over all noise is wrong on some problem; ``None`` where it cannot be computed."""
    seen = None
    for problem in problems:
        if estimator.refuses(problem) is not None or estimator.random_cost or estimator.warm_up:
            continue
        try:
            mean, _ = exact_expectation(
                estimator, problem, problem.parameters, nodes=PIECEWISE.get(estimator.family, 40)
            )
        except (ValueError, NotImplementedError):
            continue
        if _wrong(estimator, problem, mean):
            return True
        seen = False
    return seen


def _wrong(estimator: Estimator, problem, mean: torch.Tensor) -> bool:
    sizes = [sum(leaf.numel() for leaf in problem.parameters[block].values()) for block in BLOCKS]
    found = dict(zip(BLOCKS, mean[1:].split(sizes), strict=True))
    wrong = False
    for block in BLOCKS:
        target = estimator.targets[block]
        reference = None if target is None else exact(problem, target)
        if reference is None:
            continue
        if block == "theta" and bool(mean[0].isfinite()):
            wrong |= abs(float(mean[0]) - reference.value) > EXACTLY
        if block in reference.gradient:
            truth = torch.cat([reference.gradient[block][name].reshape(-1) for name in problem.parameters[block]])
            wrong |= float((found[block] - truth).norm()) > EXACTLY * float(truth.norm())
    return wrong


def table() -> list[str]:
    """Lines to print; the folder is taken away."""
    folder = os.environ.get(FOLDER)
    if not folder:
        return []
    rows = [json.loads(line) for path in Path(folder).glob("*.jsonl") for line in path.read_text().splitlines()]
    shutil.rmtree(folder, ignore_errors=True)
    if not rows:
        return []
    defects: dict[str, list[dict]] = defaultdict(list)
    for row in rows:
        defects[row["test"].replace(f"-{row['seed']}]", "]").replace(f"[{row['seed']}-", "[")].append(row)
    lines, survived = [], []
    for name, seen in sorted(defects.items()):
        caught = sum(row["sampled"] for row in seen)
        exact_ = next((row["exact"] for row in seen if row.get("exact") is not None), None)
        tier0 = {True: "exact", False: "-", None: "not computed"}[exact_]
        lines.append(f"{caught}/{len(seen)} seeds  {tier0:<12}  {name.rpartition('::')[2]}")
        if caught < len(seen):
            survived.append(name)
    items: Counter[int] = Counter(int(n) for name in defects for n in re.findall(r"defects? (\d+)", name))
    named = ", ".join(f"{item} x{count}" for item, count in sorted(items.items()))
    lines.append(f"by item of the known-bad list: {named or 'none'}; {sum(items.values())} of {len(defects)} defects")
    head = f"{len(defects)} planted defects, {len(survived)} survived; seeds that caught each, and what the exact expectation says"
    return [head, *lines]
