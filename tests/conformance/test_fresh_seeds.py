"""Every estimator right as it is, and found out when one of its blocks is a twentieth too long: on seeds that nobody chose.

``pytest -m long --rounds 20`` runs it on twenty of them; the entropy they come from is printed, and ``--entropy`` replays it.

False alarms: an unbiased estimator is called BIASED with probability 1e-9 a problem, so below 1e-5 for twenty rounds of all of
them. Power: a factor 1.05 is the effect that a round of the test misses with probability below 0.01 on one problem of the
panel; it has several.
"""

from __future__ import annotations

import pytest
from expected import EITHER, EXIT, SAMPLED
from planting import MAX_DRAWS, problems

import estimators
from benchmarks.check import PANEL, Checked, check, exit_code
from benchmarks.registry import Registry
from benchmarks.specs import settings_of
from estimators import BLOCKS, Estimator

BEYOND_DEFAULTS = (
    "sumo[cap=3]",
    "sumo[cap=5,tail=reciprocal]",
    "sumo[cap=3,tail=geometric]",
    "multilevel-russian-roulette[cap=2]",
    "multilevel-single-sample[cap=2]",
    "unbiased-reweighted-wake-sleep[cap=2]",
    "vimco[baseline=arithmetic]",
    "rebar[coupled=false]",
    "relax[coupled=false]",
    "antithetic[of=dreg]",
    "sobol[of=vimco,copies=4]",
)
"""Settings that are other formulas than the defaults."""
SPECS = (*estimators.names(), *BEYOND_DEFAULTS)
FACTOR = 1.05


def made(spec: str) -> Estimator:
    kind = estimators.REGISTRY[spec.partition("[")[0]]
    return Registry().estimator(spec, kind.usual_num_samples())


def planted(estimator: Estimator, block: str) -> Estimator:
    """The same estimator with one block's gradient longer by the factor, and claiming nothing of the other block."""
    kind = type(estimator)
    targets = {each: estimator.targets[each] if each == block else None for each in BLOCKS}

    def gradient(self, model, parameters, noise):
        found = kind.gradient(self, model, parameters, noise)
        longer = {name: FACTOR * leaf for name, leaf in getattr(found, block).items()}
        return found._replace(**{block: longer})

    mutant = type(kind.__name__, (kind,), {"gradient": gradient, "targets": property(lambda self: targets)})
    return mutant(**{name: getattr(estimator, name) for name in settings_of(kind)})


def judged(estimator: Estimator, seed: int, problem: str) -> list[Checked]:
    return check(estimator, problems((problem,)), override=None, seed=seed, max_draws=MAX_DRAWS)


@pytest.mark.long
@pytest.mark.parametrize("spec", SPECS)
def test_it_comes_out_as_it_says(spec, fresh_seed):
    found = [each for problem in PANEL for each in judged(made(spec), fresh_seed, problem)]
    assert exit_code(found) in EITHER.get(spec, {EXIT.get(spec, 0)}), [str(each.finding) for each in found]


CLAIMS = [
    (spec, block)
    for spec in SPECS
    for block, claim in made(spec).targets.items()
    if claim is not None and claim.unbiased and made(spec).variance_exists
]
"""Blocks that the sequential test can speak for. To where a bias is declared, or no variance exists, the exact expectation
speaks, on every commit."""


def assert_the_factor_is_found(spec: str, block: str, seed: int) -> None:
    findings = []
    for problem in PANEL:
        found = judged(planted(made(spec), block), seed, problem)
        findings += [str(each.finding) for each in found]
        if exit_code(found) == 1:
            return
    raise AssertionError(findings)


@pytest.mark.long
@pytest.mark.parametrize(("spec", "block"), CLAIMS)
def test_a_factor_of_1_05_is_found(spec, block, fresh_seed):
    assert_the_factor_is_found(spec, block, fresh_seed)


@pytest.mark.parametrize(("spec", "block"), [claim for claim in CLAIMS if claim[0] in SAMPLED])
def test_a_factor_of_1_05_is_found_where_no_exact_expectation_would(spec, block):
    """On every commit, for those that the bias matrix leaves out: of all others it has the exact zero."""
    assert_the_factor_is_found(spec, block, 0)
