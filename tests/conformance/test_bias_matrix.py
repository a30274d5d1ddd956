"""The bias matrix: every declaration against the exact expectation, and no zero that nobody claims."""

from __future__ import annotations

import pytest
from expected import SAMPLED

import estimators
from benchmarks.bias_matrix import UNBIASED, row

COINCIDENCES = {
    # two groups of one sample: the bound of a group is the ELBO
    ("miwae", "theta", "elbo"), ("miwae", "phi", "elbo"), ("piwae", "phi", "elbo"),
    # it takes one sample, whose bound is the ELBO
    ("enumeration", "theta", "iwae"), ("enumeration", "phi", "iwae"),
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in estimators.names() if name not in SAMPLED])
def test_what_is_declared_is_what_is_so(name):
    found = row(name)
    assert found is not None, "its expectation is not computed: list it above, and say where it is tested"
    for block, entry in found.own.items():
        if entry.bias is None:
            continue
        assert (entry.bias < UNBIASED) == (entry.declared == "unbiased"), (block, entry)
    for (block, target), entry in found.entries.items():
        if entry.bias is not None and entry.bias < UNBIASED:
            assert entry.declared == "unbiased" or (name, block, target) in COINCIDENCES, (block, target)


def test_the_matrix_can_fail():
    """Biases that theory gives are seen, and large: the positive controls."""
    assert row("iwae-stl").own["phi"].bias > 0.1
    assert row("reweighted-wake-sleep").own["phi"].bias > 0.1
    assert row("jackknife").entries["theta", "log_marginal"].bias > 0.1
    assert row("iwae").entries["phi", "elbo"].bias > 0.1


@pytest.mark.parametrize("name", sorted(SAMPLED))
def test_those_left_out_are_registered(name):
    assert name in estimators.names()
