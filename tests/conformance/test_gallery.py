"""The pages written from the code: nothing that is registered lacks a formula, a target, needs, a cost or a reference."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

import estimators
from benchmarks import problems
from benchmarks.references.pyro_losses import LOSSES

KINDS = [*estimators.REGISTRY.values(), *LOSSES]


@pytest.fixture(scope="module")
def gallery():
    path = Path(__file__).resolve().parents[2] / "docs" / "gallery.py"
    spec = importlib.util.spec_from_file_location("gallery", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_estimator_has_a_row_that_lacks_nothing(gallery, kind):
    text = gallery._estimator(kind)
    assert text.startswith(f"### `{kind.name}`")
    if kind in estimators.REGISTRY.values():
        assert re.search(r"\\\[ .+ \\\]", text), "no formula"
    assert len(re.findall(r"^\| \\\(\\(?:theta|phi)\\\) \| \S.* \|", text, re.MULTILINE)) == 2, "no targets"
    assert re.search(r"^\*\*Needs:\*\* \S", text, re.MULTILINE)
    assert re.search(r"^\*\*Cost of one gradient at K = \d+:\*\* (on average )?[\d.]+ evaluations", text, re.MULTILINE)
    assert re.search(r"^\*\*References:\*\* \S", text, re.MULTILINE) and "@" in text.partition("```bibtex")[2]


def test_every_problem_has_one(gallery):
    page = gallery.problems_page()
    for name, kind in problems.REGISTRY.items():
        assert f"\n## `{name}`\n" in page and kind.summary


@pytest.mark.parametrize(
    "word",
    ["Tensor Monte Carlo", "FIVO", "IWHVI", "MMD", "Local reparameterisation", "Coupled-chain", "VIMCO-star", "ARSM"],
)
def test_what_is_left_out_is_said_with_its_reason(gallery, word):
    assert word in gallery.OUT_OF_SCOPE
