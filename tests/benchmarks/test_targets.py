"""Targets as users write them."""

from __future__ import annotations

import pytest

from benchmarks.specs import SpecError
from benchmarks.targets import TARGETS, takes_samples, target
from benchmarks.verbs.checking import ASKED_FOR
from estimators import Target


def test_targets_by_name():
    assert target("iwae", 5) == Target("iwae", 5)
    assert target("elbo", 5) == Target("elbo")
    assert target("renyi[setting=0.5]", 2) == Target("renyi", 2, setting=0.5)
    assert target("jackknife[setting=2]", 3) == Target("jackknife", 3, setting=2.0)
    assert target("f_divergence[setting=hellinger]", 3) == Target("f_divergence", setting="hellinger")


def test_what_help_names_are_the_targets_as_they_are_written():
    assert sorted(target(text, 2).name for text in ASKED_FOR) == sorted(TARGETS)
    assert [text for text in ASKED_FOR if takes_samples(text)] == [
        *("iwae", "renyi[setting=0.5]", "ciwae[setting=0.5]", "jackknife[setting=1]")
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("elbow", "no target 'elbow'; did you mean 'elbo'?"),
        ("renyi", "target renyi takes renyi[setting=...], not 'renyi'"),
        ("elbo[setting=2]", "target elbo takes no setting, not 'elbo[setting=2]'"),
        ("renyi[setting=inf]", "target renyi: setting must be a number, not 'inf'"),
        ("ciwae[setting=2]", "target ciwae: setting must be a number from 0 to 1, not '2'"),
        ("jackknife[setting=3]", "target jackknife: setting must be a whole number from 1 to K - 1 (K is 3), not '3'"),
        ("jackknife[setting=0]", "target jackknife: setting must be a whole number from 1 to K - 1 (K is 3), not '0'"),
        ("tvo[setting=1.5]", "target tvo: setting must be a whole number from 1, not '1.5'"),
        ("relaxed_elbo[setting=0]", "target relaxed_elbo: setting must be a number above 0, not '0'"),
        ("f_divergence[setting=helinger]", "target f_divergence: no divergence 'helinger'; did you mean 'hellinger'?"),
    ],
)
def test_what_is_no_target_is_told(text, said):
    with pytest.raises(SpecError) as problem:
        target(text, 3)
    assert str(problem.value) == said
