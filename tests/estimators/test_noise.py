"""Noise schemes: expectation and variance exactly, what they couple, and whom they refuse.

Statistical tests: |z| < 4.5 (7e-6) for means; variances by `check_variance_ratio`, false alarms 1e-6, power 0.99 at 1.1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

import estimators
from benchmarks import cost
from benchmarks.problems import Gaussian1D, LinearGaussian, SigmoidBeliefNet
from benchmarks.registry import Registry, estimator_spec
from benchmarks.specs import SpecError
from estimators import BLOCKS, Antithetic, Refusal, Sobol, Stratified, Target
from estimators.contract import Draw
from estimators.quadrature import exact_expectation, gauss_hermite, gauss_legendre, product
from estimators.replicates import flatten, stacked, warmed_up
from estimators.testing_variance import assert_variance_ratio

POINTS = [
    Gaussian1D(loc=1.5, scale=0.6, x=1.3, prior_loc=0.2),  # rho = 0.72
    Gaussian1D(loc=-1.4, scale=1.1, x=-1.3, prior_loc=-0.3),  # rho = 2.42
]
SCHEMES = [Antithetic, Sobol, Stratified]


def paired_grid(num_samples, nodes):
    """Every noise of an antithetic pair, (N, 2, K, 1, 1), and its weights."""
    grid, weight = product([gauss_hermite(nodes)] * num_samples)
    grid = grid.reshape(-1, 1, num_samples, 1, 1)
    return torch.cat([grid, -grid], 1), weight


def row(reference):
    return torch.cat([torch.tensor([reference.value]).double(), *(leaf.flatten() for block in BLOCKS
                      for leaf in reference.gradient[block].values())])  # fmt: skip


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
@pytest.mark.parametrize(
    ("of", "K", "target"),
    [
        ("reparameterization", 1, Target("elbo")),
        ("score-function", 1, Target("elbo")),
        ("sticking-the-landing", 2, Target("elbo")),
        ("leave-one-out", 2, Target("elbo")),
        ("iwae", 2, Target("iwae", 2)),
        ("dreg", 2, Target("iwae", 2)),
        ("vimco", 2, Target("iwae", 2)),
    ],
)
def test_the_expectation_of_a_pair_is_that_of_one(of, K, target, problem):
    pair = Antithetic(num_samples=K, of=of)
    mean, _ = exact_expectation(pair, problem, problem.parameters, grid=paired_grid(K, 140))
    truth = row(problem.exact(target))
    torch.testing.assert_close(mean, truth, rtol=0, atol=1e-6 * float(truth.norm()))


@pytest.mark.parametrize("problem", POINTS, ids=lambda p: p.spec)
def test_a_pair_has_no_variance_in_the_mean_of_a_quadratic_and_some_in_the_scale(problem):
    """Per draw g_mu is linear and g_lambda is 1 + sigma eps (c - sigma P eps): the even part, 2 (sigma^2 P)^2, remains."""
    pair, one = Antithetic(of="reparameterization"), estimators.Reparameterization()
    _, variance = exact_expectation(pair, problem, problem.parameters, grid=paired_grid(1, 60))
    _, single = exact_expectation(one, problem, problem.parameters)
    value, prior_loc, loc, log_scale = variance.tolist()
    assert loc < 1e-24 and prior_loc < 1e-24
    rho = 2 * problem.scale**2
    assert log_scale == pytest.approx(2 * rho**2, rel=1e-9)
    assert float(single[3]) == pytest.approx(2 * rho**2 + (rho * (problem.loc - (problem.prior_loc + problem.x) / 2)
                                                         / problem.scale) ** 2, rel=1e-9)  # fmt: skip
    assert value > 0
    assert_variance_ratio(pair, problem, problem.parameters, 0.0, block="phi.loc")
    assert_variance_ratio(pair, problem, problem.parameters, 2 * rho**2, block="phi.log_scale")


@pytest.mark.parametrize("copies", [2, 5])
def test_the_variance_of_stratification_in_one_dimension(copies):
    """C^-2 sum_c Var(g | stratum c), each by Gauss-Legendre in the stratum's uniform number."""
    problem = POINTS[0]
    one, exact = estimators.Reparameterization(), 0.0
    for c in range(copies):
        u, w = gauss_legendre([], 200)
        eps = torch.special.ndtri((c + u) / copies).reshape(-1, 1, 1, 1)
        rows = flatten(
            torch.func.vmap(lambda e: one.gradient(problem, problem.parameters, e))(eps), problem.parameters
        )[:, 2:]
        exact += float((w @ (rows - w @ rows).square()).sum()) / copies**2
    single = problem.exact_variance("reparameterization", 1, "phi")
    assert exact < 0.8 * single / copies  # else the test could not tell strata from independent copies
    scheme = Stratified(of="reparameterization", copies=copies)
    assert_variance_ratio(scheme, problem, problem.parameters, exact, factor=1.1)


@pytest.mark.parametrize("K", [1, 2])
def test_randomised_nets_beat_the_rate_of_independent_copies(K):
    """Var ~ C^-1 for independent copies. Relative error of a variance from 4,000 replicates below 6 %, so that of the slope
    over a factor 16 below 0.04 (one sigma): -1.5 is twelve off both -1 and what is found."""
    problem = POINTS[1]
    found = []
    for copies in (4, 64):
        scheme = Sobol(num_samples=K, of="iwae", copies=copies)
        rows = stacked(scheme, problem, problem.parameters, 4000, torch.Generator().manual_seed(copies))
        found.append(float(rows[:, 1:].var(0).sum()))
    slope = math.log(found[1] / found[0]) / math.log(16)
    assert slope < -1.5, slope


def test_standard_errors_are_over_replicates():
    """From the spread of the copies within one estimate the standard error comes out wrong, here several times too large."""
    problem = POINTS[1]
    scheme, one = Sobol(of="reparameterization", copies=16), estimators.Reparameterization()
    guide = problem.guide(problem.parameters["phi"])
    noise = scheme.draws(guide, 2000, torch.Generator().manual_seed(5))[0].noise
    copies = flatten(
        torch.func.vmap(lambda e: one.gradient(problem, problem.parameters, e))(noise.flatten(0, 1)), problem.parameters
    ).reshape(2000, 16, -1)
    estimates = flatten(
        torch.func.vmap(lambda e: scheme.gradient(problem, problem.parameters, e))(noise), problem.parameters
    )
    torch.testing.assert_close(estimates, copies.mean(1))
    naive = (copies.var(1) / 16).mean(0)[1:]
    actual = estimates.var(0)[1:]  # relative error 3 %
    assert bool((naive > 5 * actual).all())
    truth = row(problem.exact(Target("elbo")))
    z = (estimates.mean(0) - truth) / (estimates.var(0) / 2000).sqrt()
    assert float(z.abs().max()) < 4.5


@pytest.mark.parametrize("shape", [(1, 1), (3, 4)])
@pytest.mark.parametrize("scheme", [Sobol(copies=16), Stratified(copies=16), Stratified(copies=5)], ids=str)
def test_every_copy_is_uniform_and_every_stratum_holds_one(scheme, shape):
    """Chi-square of each copy's position over ten cells: beyond its mean by 4.5 sigma with probability below 1e-4 for 16 x 12
    of them together (the chi-square's own tail is heavier than the normal's: 9 degrees of freedom, 1e-5 at 41)."""
    dimension = math.prod(shape)
    u = scheme.uniforms(3000, dimension, torch.Generator().manual_seed(1))
    assert u.shape == (3000, scheme.copies, dimension) and u.dtype == torch.float64
    assert float(u.min()) > 0 and float(u.max()) < 1
    strata = (u * scheme.copies).long().sort(1).values
    assert bool((strata == torch.arange(scheme.copies)[:, None]).all())
    cells = torch.nn.functional.one_hot((u * 10).long(), 10).double().sum(0)
    chi_square = ((cells - 300) ** 2 / 300).sum(-1)
    assert float(chi_square.max()) < 50  # 9 degrees of freedom: 1e-7 each, below 1e-4 together
    if dimension > 1:  # dimensions are independent of one another within one copy
        pairs = (u[:, 0, 0] * 5).long() * 5 + (u[:, 0, 1] * 5).long()
        joint = torch.bincount(pairs, minlength=25).double()
        assert float(((joint - 120) ** 2 / 120).sum()) < 75  # 24 degrees of freedom: 3e-7


def test_a_shifted_net_is_still_a_net():
    """Of 16 points in two dimensions every elementary box of volume 1/16 holds exactly one, whatever the shift."""
    u = Sobol(copies=16).uniforms(50, 2, torch.Generator().manual_seed(2))
    for power in range(5):
        boxes = (u[..., 0] * 2**power).long() * 2 ** (4 - power) + (u[..., 1] * 2 ** (4 - power)).long()
        assert bool((boxes.sort(1).values == torch.arange(16)).all())


def test_mirror_images_of_uniform_noise():
    problem = SigmoidBeliefNet()
    pair = Antithetic(num_samples=3, of="leave-one-out")
    noise = pair.draws(problem.guide(problem.parameters["phi"]), 5, torch.Generator().manual_seed(0))[0].noise
    torch.testing.assert_close(noise[:, 0] + noise[:, 1], torch.ones(5, 3, 1, 3).double())


@pytest.mark.parametrize("kind", SCHEMES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_noise_has_the_law_of_the_guides(kind, dtype):
    """Each number of each copy on its own: mean and variance within 4.5 standard errors."""
    problem = LinearGaussian(dim=2, data_dim=2, dtype=dtype)
    guide = problem.guide(problem.parameters["phi"])
    noise = kind(num_samples=2).draws(guide, 4000, torch.Generator().manual_seed(3))[0].noise
    assert noise.dtype == getattr(torch, dtype) and bool(noise.isfinite().all())
    assert noise.shape == (4000, kind(num_samples=2).size, 2, 1, 2)
    noise = noise.double()
    assert float(noise.mean(0).abs().max()) < 4.5 / 4000**0.5
    assert float((noise.var(0) - 1).abs().max()) < 4.5 * (2 / 4000) ** 0.5


@pytest.mark.parametrize("scheme", [Antithetic(num_samples=3), Sobol(num_samples=3, copies=8)], ids=str)
def test_the_cost_is_that_of_all_copies(scheme):
    problem = LinearGaussian(points=2)
    ours = cost.count(scheme, problem, problem.parameters, torch.Generator().manual_seed(0))
    one = cost.count(estimators.Reparameterization(3), problem, problem.parameters, torch.Generator().manual_seed(0))
    assert ours.evaluations_per_gradient == scheme.size * one.evaluations_per_gradient == scheme.size * 6
    assert ours.flops_per_gradient >= scheme.size * one.flops_per_gradient


def test_the_wrapped_one_has_its_own_settings():
    """As an estimator in Python, in brackets on the command line: one meaning, one canonical text, and its own weights."""
    made = Registry().estimator("sobol[of=renyi[alpha=0.3],copies=4]", 2)
    assert made == Sobol(num_samples=2, of=estimators.Renyi(5, alpha=0.3), copies=4)  # K is the scheme's
    assert made.wrapped == estimators.Renyi(2, alpha=0.3) and made.targets["phi"] == Target("renyi", 2, setting=0.3)
    assert estimator_spec(made) == "sobol[of=renyi[alpha=0.3],copies=4]"
    assert Registry().estimator(estimator_spec(made), 2) == made
    assert made != Sobol(num_samples=2, of="renyi", copies=4)
    assert replace(made, num_samples=3).wrapped == estimators.Renyi(3, alpha=0.3)
    problem = POINTS[0]
    noise = made.draws(problem.guide(problem.parameters["phi"]), 1, torch.Generator().manual_seed(0))[0].noise[0]
    own = [estimators.Renyi(2, alpha=0.3).gradient(problem, problem.parameters, each) for each in noise]
    mean = made.gradient(problem, problem.parameters, noise)
    torch.testing.assert_close(mean.phi["loc"], torch.stack([each.phi["loc"] for each in own]).mean(0))
    registry = Registry()
    assert registry.version(Antithetic(of="jackknife", num_samples=3)) == "1 of " + estimators.Jackknife.version


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("antithetic[of=renyi[alpha=0.3]", "cannot read"),
        ("antithetic[of=renyi[alpha=0.3]]]", "cannot read"),
        ("antithetic[of=nobody]", "no estimator 'nobody'"),
        ("antithetic[of=renyi[beta=0.3]]", "renyi has no parameter 'beta'"),
        ("antithetic[of=renyi[alpha=x]]", "takes a finite number, not 'x'"),
        ("antithetic[of=vimco[num_samples=3]]", "give the number of samples by --num-samples"),
        ("antithetic[of=antithetic[of=iwae]]", "one scheme at a time"),
        ("antithetic[of=vimco[baseline=none]]", "antithetic of vimco|vimco takes baseline"),
    ],
)
def test_settings_of_the_wrapped_one_that_cannot_be(spec, words):
    with pytest.raises((SpecError, Refusal), match=words) as caught:
        Registry().estimator(spec, 2)
    assert "\n" not in str(caught.value)


def test_its_declarations_are_those_of_the_wrapped_one():
    scheme = Sobol(num_samples=4, of="vimco")
    vimco = estimators.VIMCO(num_samples=4)
    assert scheme.targets == vimco.targets and scheme.needs == vimco.needs == frozenset()
    assert scheme.min_num_samples == 2 and scheme.snr_slopes == vimco.snr_slopes
    assert set(vimco.citations) < set(scheme.citations)
    assert replace(scheme, num_samples=5).targets["phi"] == Target("iwae", 5)
    assert Registry().estimator("sobol[of=dreg,copies=4]", 3) == Sobol(num_samples=3, of="dreg", copies=4)
    assert scheme.refuses(SigmoidBeliefNet()) is None
    assert "sobol of reparameterization needs" in str(Sobol().refuses(SigmoidBeliefNet()))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: Sobol(of="nobody"), "of=NAME"),
        (lambda: Sobol(of="antithetic"), "one scheme at a time"),
        (lambda: Antithetic(of="sumo"), "different numbers of samples"),
        (lambda: Antithetic(num_samples=1, of="multilevel-single-sample"), "different numbers of samples"),
        (lambda: Antithetic(num_samples=1, of="vimco"), "num_samples >= 2"),
        (lambda: Sobol(copies=6), "power of two"),
        (lambda: Sobol(copies=1), "power of two"),
        (lambda: Stratified(copies=1), "copies >= 2"),
    ],
)
def test_refusals(make, reason):
    with pytest.raises(Refusal, match=reason) as caught:
        make()
    assert "\n" not in str(caught.value)


def test_a_net_has_so_many_dimensions_and_no_more():
    guide = estimators.DiagonalGaussian(torch.zeros(1, 21_202), torch.zeros(1, 21_202))
    with pytest.raises(Refusal, match="21201 dimensions; one estimate of reparameterization takes 21202"):
        Sobol(copies=2).draws(guide, 1, torch.Generator())


@dataclass(frozen=True)
class OwnGuide(estimators.DiagonalGaussian):
    noise_law = "own"


@pytest.mark.parametrize("kind", SCHEMES)
def test_guides_with_noise_of_their_own_kind_are_refused(kind):
    with pytest.raises(Refusal, match="OwnGuide draws its own kind"):
        kind().draws(OwnGuide(torch.zeros(1, 1), torch.zeros(1, 1)), 2, torch.Generator())


@dataclass(frozen=True)
class TwoBatches(estimators.Reparameterization):
    """Its noise is a pair of batches of the guide's; it averages over both."""

    def draws(self, guide, replicates, generator):
        shape = (replicates, self.num_samples)
        return [
            Draw(torch.arange(replicates), {"a": guide.noise(shape, generator), "b": guide.noise(shape, generator)})
        ]

    def gradient(self, model, parameters, noise):
        return super().gradient(model, parameters, torch.cat([noise["a"], noise["b"]]))

    def weights(self, log_w):
        return estimators.Reparameterization(num_samples=2 * self.num_samples).weights(log_w)


@dataclass(frozen=True)
class OwnNoise(TwoBatches):
    """Half of its noise is not the guide's."""

    def draws(self, guide, replicates, generator):
        ours = guide.noise((replicates, self.num_samples), generator)
        return [Draw(torch.arange(replicates), {"a": ours, "b": torch.randn(ours.shape, generator=generator)})]


@dataclass(frozen=True)
class Learning(estimators.Reparameterization):
    """Learns how often it has seen a draw, and the mean of what it saw; its estimate is unmoved by that."""

    warm_up = 3

    def adapted(self, model, parameters, noise):
        state = self.state or {"seen": torch.zeros(()), "sum": torch.zeros(()).double()}
        return replace(self, state={"seen": state["seen"] + 1, "sum": state["sum"] + noise.sum()})


def test_all_noise_of_the_guide_is_coupled_whatever_its_structure(monkeypatch):
    monkeypatch.setitem(estimators.REGISTRY, "two-batches", TwoBatches)
    problem = POINTS[0]
    guide = problem.guide(problem.parameters["phi"])
    pair = Antithetic(of="two-batches")
    noise = pair.draws(guide, 4, torch.Generator().manual_seed(0))[0].noise
    assert set(noise) == {"a", "b"} and noise["a"].shape == (4, 2, 1, 1, 1)
    assert torch.equal(noise["a"][:, 0], -noise["a"][:, 1]) and torch.equal(noise["b"][:, 0], -noise["b"][:, 1])
    assert_variance_ratio(pair, problem, problem.parameters, 0.0, block="phi.loc")
    net = Sobol(of="two-batches", copies=16).draws(guide, 4, torch.Generator().manual_seed(0))[0].noise
    u = torch.special.ndtr(torch.stack([net["a"], net["b"]], -1).reshape(4, 16, 2))
    boxes = (u * 4).long() @ torch.tensor([4, 1])  # one net over both, not a net each
    assert bool((boxes.sort(1).values == torch.arange(16)).all())


def test_noise_beside_the_guides_is_refused(monkeypatch):
    monkeypatch.setitem(estimators.REGISTRY, "own-noise", OwnNoise)
    with pytest.raises(Refusal, match="cannot wrap own-noise: it draws noise of its own"):
        Stratified(of="own-noise")


def test_what_the_wrapped_one_learns_is_the_state(monkeypatch):
    monkeypatch.setitem(estimators.REGISTRY, "learning", Learning)
    problem = POINTS[0]
    pair = Antithetic(of="learning")
    assert pair.warm_up == 3 and pair.state is None
    pair = warmed_up(pair, problem, problem.parameters, torch.Generator().manual_seed(0))
    assert pair.state is not None
    assert float(pair.state["seen"]) == 6  # both copies of three draws
    assert abs(float(pair.state["sum"])) < 1e-12  # which are mirror images
    assert pair.wrapped.state is pair.state


@pytest.mark.parametrize(
    "spec", ["antithetic[of=leave-one-out]", "sobol[of=vimco,copies=4]", "stratified[of=leave-one-out]"]
)
def test_discrete_latents(spec):
    """|z| < 4.5 in each coordinate, 2,000 estimates, against the sum over all states."""
    problem = SigmoidBeliefNet(dim=3, data_dim=4, seed=2)
    scheme = Registry().estimator(spec, 2)
    rows = stacked(scheme, problem, problem.parameters, 2000, torch.Generator().manual_seed(4)).numpy()
    truth = row(problem.exact(scheme.targets["phi"])).numpy()
    z = (rows.mean(0) - truth) / np.maximum(rows.std(0) / 2000**0.5, 1e-12)
    assert np.abs(z).max() < 4.5


@pytest.mark.parametrize("of", estimators.names())
def test_every_estimator_is_wrapped_or_refused_in_one_line(of):
    kind = estimators.REGISTRY[of]
    try:
        pair = Antithetic(num_samples=kind.usual_num_samples(), of=of)
    except Refusal as refusal:
        assert str(refusal).startswith("antithetic") and "\n" not in str(refusal)
        return
    assert pair.targets == kind(num_samples=kind.usual_num_samples()).targets
    for problem in (LinearGaussian(), SigmoidBeliefNet()):
        if pair.refuses(problem) is None:
            ready = warmed_up(pair, problem, problem.parameters, torch.Generator().manual_seed(0))
            rows = stacked(ready, problem, problem.parameters, 2, torch.Generator().manual_seed(1))
            assert bool(rows[:, 1:].isfinite().all())
