"""Guides that are differentiated through their distribution functions: derivatives of single draws against the quantiles' own,
expectations of estimators exactly, and laws of the draws. References by scipy, which shares nothing with the guides."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import special, stats
from torch.func import grad, jacrev, vmap

import estimators
from benchmarks.problems import BetaBernoulli, GammaPoisson, GaussianMixtureGuide
from estimators import BLOCKS, Beta, Gamma, MixtureOfGaussians, Refusal, Target
from estimators.implicit_guides import beta_slopes, gamma_slope
from estimators.quadrature import exact_expectation, gauss_legendre
from estimators.replicates import stacked

PROBLEMS = [
    GammaPoisson(points=1, seed=1),
    GammaPoisson(concentration=0.6, rate=1.5, observations=1, seed=3),
    BetaBernoulli(seed=1),
    BetaBernoulli(alpha=0.7, beta=1.4, observations=2, seed=5),
    GaussianMixtureGuide(),
    GaussianMixtureGuide(loc1=-0.6, scale2=0.6, weight1=0.7),
]
PROBABILITIES = (1e-6, 1e-3, 0.05, 0.3, 0.5, 0.7, 0.95, 0.999, 1 - 1e-6)


def double(value):
    return torch.as_tensor(value, dtype=torch.float64)


# Derivatives of one draw: the quantile's own, by central differences of fourth order


def quantile_slope(quantile, at, relative=2e-3):
    h = relative * at
    return (8 * (quantile(at + h) - quantile(at - h)) - (quantile(at + 2 * h) - quantile(at - 2 * h))) / (12 * h)


@pytest.mark.parametrize("a", [0.3, 1.0, 2.5, 10.0, 80.0])
def test_slopes_of_the_gamma_law(a):
    for p in PROBABILITIES:
        x = stats.gamma.ppf(p, a)
        expected = quantile_slope(lambda at, p=p: stats.gamma.ppf(p, at), a)
        assert float(gamma_slope(double(a), double(x))) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize(("a", "b"), [(1.0, 1.0), (0.6, 2.0), (2.0, 5.0), (20.0, 30.0), (60.0, 2.0)])
def test_slopes_of_the_beta_law(a, b):
    for p in PROBABILITIES:
        z = stats.beta.ppf(p, a, b)
        found = beta_slopes(double(a), double(b), double(z))
        expected = (
            quantile_slope(lambda at, p=p: stats.beta.ppf(p, at, b), a),
            quantile_slope(lambda at, p=p: stats.beta.ppf(p, a, at), b),
        )
        assert [float(slope) for slope in found] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("a", [0.02, 0.3, 3.0, 50.0, 1000.0])
def test_slopes_of_the_gamma_law_by_the_series(a):
    """-dF/da / q with F's derivative summed term by term: F = x^a e^-x sum_n x^n / Gamma(a + n + 1)."""
    for p in (1e-6, 0.05, 0.5, 0.95, 1 - 1e-6):
        x = stats.gamma.ppf(p, a)
        n = np.arange(int(4 * x + 400))
        terms = np.exp(a * np.log(x) - x + n * np.log(x) - special.gammaln(a + n + 1))
        below = np.sum(terms * (np.log(x) - special.digamma(a + n + 1)))
        expected = -below / stats.gamma.pdf(x, a)
        if abs(below) > 1e-6:  # else the series cancels
            assert float(gamma_slope(double(a), double(x))) == pytest.approx(expected, rel=1e-8)


def test_slopes_are_closer_than_torchs_own_which_has_no_rule_for_vmap():
    a, x = double([0.3, 3.0, 9.0]), double([0.2, 2.0, 10.0])
    ours, theirs = gamma_slope(a, x), torch._standard_gamma_grad(a, x)
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=0)
    torch.testing.assert_close(vmap(gamma_slope)(a, x), ours)
    single = gamma_slope(a.float(), x.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), ours, rtol=1e-5, atol=0)


def mixture(dim, seed, components=3):
    generator = torch.Generator().manual_seed(seed)
    draw = {"generator": generator, "dtype": torch.float64}
    return {
        "logits": torch.randn(components, **draw),
        "loc": 1.5 * torch.randn(components, dim, **draw),
        "log_scale": 0.4 * torch.randn(components, dim, **draw),
    }


def rosenblatt(phi, z):
    """Conditional distribution functions of one draw (D,), by scipy."""
    weight = special.softmax(phi["logits"].numpy())
    loc, scale, places = phi["loc"].numpy(), phi["log_scale"].exp().numpy(), []
    for d in range(len(z)):
        places.append(float(weight @ special.ndtr((z[d] - loc[:, d]) / scale[:, d])) / weight.sum())
        weight = weight * np.exp(-0.5 * ((z[d] - loc[:, d]) / scale[:, d]) ** 2) / scale[:, d]
    return np.array(places)


def inverse(phi, places, start):
    """The draw that has given places, by bisection of one coordinate after the other."""
    z = np.array(start, dtype=float)
    for d in range(len(z)):
        low, high = start[d] - 1.0, start[d] + 1.0
        for _ in range(45):
            z[d] = (low + high) / 2
            low, high = (z[d], high) if rosenblatt(phi, z[: d + 1])[d] < places[d] else (low, z[d])
    return z


@pytest.mark.parametrize(("dim", "seed"), [(1, 0), (2, 1), (3, 2)])
def test_slopes_of_a_mixture_keep_every_conditional_place(dim, seed):
    phi = mixture(dim, seed)
    guide = MixtureOfGaussians(**phi)
    for row in guide.noise((2,), torch.Generator().manual_seed(7)):
        found = jacrev(lambda p, row=row: MixtureOfGaussians(**p).transform(row))(phi)
        assert torch.equal(guide.transform(row), row)
        places = rosenblatt(phi, row.numpy())
        for name, leaf in phi.items():
            for place in np.ndindex(*leaf.shape):
                ends = []
                for step in (1e-4, -1e-4):
                    moved = {n: t.clone() for n, t in phi.items()}
                    moved[name][place] += step
                    ends.append(inverse(moved, places, row.numpy()))
                slope = (ends[0] - ends[1]) / 2e-4
                np.testing.assert_allclose(found[name][(slice(None), *place)].numpy(), slope, rtol=2e-5, atol=1e-7)


# Expectations, exactly


def draws_of(problem, nodes):
    """Nodes of the guide's noise ``(N, 1, 1)`` at the problem's parameters, and the probabilities that stand at them."""
    phi = problem.parameters["phi"]
    if problem.name == "gaussian-mixture-guide":
        z = torch.linspace(-7.5, 8.5, nodes, dtype=torch.float64)
        dz, noise = z[1] - z[0], z
    else:
        first, second = (leaf.exp().item() for leaf in phi.values())
        gamma = problem.name == "gamma-poisson"
        high = math.log((first + 8 * first**0.5 + 45) / second) if gamma else min(40 / second + 2, 34)
        y = torch.linspace(-40 / first - 1, high, nodes, dtype=torch.float64)
        z = y.exp() if gamma else y.sigmoid()
        dz = (z if gamma else z * (1 - z)) * (y[1] - y[0])
        noise = z * second if gamma else z
    mass = problem.guide(phi).log_prob(z[:, None, None])[:, 0].exp() * dz
    return noise[:, None, None], mass / mass.sum()


def row_of(reference):
    leaves = [leaf.flatten() for block in BLOCKS for leaf in reference.gradient[block].values()]
    return torch.cat([double([reference.value]), *leaves])


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.spec)
@pytest.mark.parametrize("name", ["reparameterization", "sticking-the-landing", "score-function"])
def test_the_elbo_estimators_are_unbiased(name, problem):
    noise, mass = draws_of(problem, 400)
    mean, _ = exact_expectation(estimators.get(name), problem, problem.parameters, grid=(noise[:, None], mass))
    truth = row_of(problem.exact(Target("elbo")))
    torch.testing.assert_close(mean, truth, rtol=0, atol=1e-8 * float(truth.norm()))


@pytest.mark.parametrize("problem", PROBLEMS[::2], ids=lambda p: p.spec)
@pytest.mark.parametrize("name", ["iwae", "dreg", "vimco"])
def test_the_multi_sample_estimators_are_unbiased(name, problem):
    noise, mass = draws_of(problem, 110)
    pairs = torch.cartesian_prod(torch.arange(110), torch.arange(110))
    mean, _ = exact_expectation(
        estimators.get(name, num_samples=2), problem, problem.parameters, grid=(noise[pairs], mass[pairs].prod(1))
    )
    truth = row_of(problem.exact(Target("iwae", 2)))
    torch.testing.assert_close(mean, truth, rtol=0, atol=2e-5 * float(truth.norm()))


def smooth(z):
    """A function of the plane that interacts, without symmetry."""
    return torch.sin(z[..., 0] + 0.7 * z[..., 1]) + 0.3 * z[..., 0] * z[..., 1].square()


def expectations(kind=MixtureOfGaussians):
    """The derivative of E smooth(z) under a mixture in the plane: through the draws of ``kind``, and of the sum itself."""
    phi = mixture(2, 4, components=2)
    axis = torch.linspace(-12.0, 12.0, 240, dtype=torch.float64)
    z, area = torch.cartesian_prod(axis, axis), (axis[1] - axis[0]) ** 2

    def value(p):
        return (MixtureOfGaussians(**p).log_prob(z).exp() * area * smooth(z)).sum()

    mass = MixtureOfGaussians(**phi).log_prob(z).exp() * area
    kept = mass > 1e-18

    def pathwise(p):
        return (mass[kept] * smooth(kind(**p).transform(z[kept]))).sum()

    return grad(pathwise)(phi), grad(value)(phi)


def test_expectations_in_the_plane():
    ours, truth = expectations()
    for name, leaf in truth.items():
        torch.testing.assert_close(ours[name], leaf, rtol=0, atol=1e-6)


@dataclass(frozen=True)
class EarlierHeld(MixtureOfGaussians):
    """A defect: later coordinates do not notice that earlier ones move."""

    def transform(self, noise):
        held = [
            MixtureOfGaussians.transform(self, torch.cat([noise[..., :d].detach(), noise[..., d:]], -1)) for d in (0,)
        ]
        first = held[0][..., 0]
        loc, scale = self.loc[..., 1], self.log_scale[..., 1].exp()
        before = (noise[..., :1] - self.loc[..., 0]) * torch.exp(-self.log_scale[..., 0])
        r = (self.logits - 0.5 * before.square() - self.log_scale[..., 0]).softmax(-1)
        place = (noise[..., 1, None] - loc) / scale
        density = (r * torch.exp(-0.5 * place.square()) / scale).sum(-1) / math.sqrt(2 * math.pi)
        below = (r * torch.special.ndtr(place)).sum(-1)
        return torch.stack([first, noise[..., 1] - (below - below.detach()) / density.detach()], -1)


def test_expectations_in_the_plane_see_a_coordinate_that_is_held():
    ours, truth = expectations(EarlierHeld)
    assert max(float((ours[name] - leaf).abs().max()) for name, leaf in truth.items()) > 0.01


# Laws of the draws


@pytest.mark.parametrize(
    ("guide", "law"),
    [
        (Gamma(double([math.log(0.4)]), double([0.3])), stats.gamma(0.4, scale=math.exp(-0.3))),
        (Gamma(double([math.log(5.0)]), double([-1.0])), stats.gamma(5.0, scale=math.exp(1.0))),
        (Beta(double([math.log(0.8)]), double([math.log(3.0)])), stats.beta(0.8, 3.0)),
    ],
    ids=["gamma, peaked at zero", "gamma", "beta"],
)
def test_draws_and_densities(guide, law):
    """Kolmogorov's test on 20,000 draws: p below 1e-6 never happens by chance here."""
    z = guide.transform(guide.noise((20_000,), torch.Generator().manual_seed(1)))[:, 0]
    assert stats.kstest(z.numpy(), law.cdf).pvalue > 1e-6
    np.testing.assert_allclose(guide.log_prob(z[:50, None]).numpy(), law.logpdf(z[:50].numpy()), rtol=1e-9)


def test_draws_and_densities_of_mixtures():
    phi = mixture(2, 5)
    guide = MixtureOfGaussians(**phi)
    z = guide.noise((20_000,), torch.Generator().manual_seed(2))
    places = np.array([rosenblatt(phi, row) for row in z[:3000].numpy()])
    for d in range(2):  # independent uniform numbers
        assert stats.kstest(places[:, d], stats.uniform.cdf).pvalue > 1e-6
    assert abs(np.corrcoef(places.T)[0, 1]) < 4.5 / 3000**0.5
    parts = [
        special.softmax(phi["logits"].numpy())[c]
        * stats.multivariate_normal(phi["loc"][c].numpy(), np.diag(phi["log_scale"][c].exp().square().numpy())).pdf(
            z[:50]
        )
        for c in range(3)
    ]
    np.testing.assert_allclose(guide.log_prob(z[:50]).numpy(), np.log(sum(parts)), rtol=1e-10)


@pytest.mark.parametrize("problem", PROBLEMS[::2], ids=lambda p: p.spec)
def test_batches_shapes_and_single_precision(problem):
    for dtype in ("float32", "float64"):
        twin = type(problem)(dtype=dtype, **({"points": 3} if hasattr(problem, "points") else {}))
        guide = twin.guide(twin.parameters["phi"])
        noise = guide.noise((5, 2), torch.Generator().manual_seed(0))
        points = len(twin.data)
        assert noise.shape == (5, 2, points, 1) and noise.dtype == getattr(torch, dtype)
        assert guide.log_prob(guide.transform(noise)).shape == (5, 2, points)
        rows = stacked(estimators.Reparameterization(2), twin, twin.parameters, 64, torch.Generator().manual_seed(1))
        assert bool(rows.isfinite().all()) and rows.dtype == getattr(torch, dtype)


@pytest.mark.parametrize("problem", PROBLEMS[::2], ids=lambda p: p.spec)
def test_noise_schemes_refuse_them(problem):
    for scheme in (estimators.Antithetic(), estimators.Sobol()):
        with pytest.raises(Refusal, match="draws its own kind"):
            scheme.draws(problem.guide(problem.parameters["phi"]), 2, torch.Generator())


def test_no_scheme_of_uniform_numbers_is_needed_for_a_check_of_the_mean():
    """E z and its derivatives, exactly: a / b for the gamma law, by quadrature over the place in the distribution."""
    u, w = gauss_legendre([1e-6, 1e-3, 0.03, 0.97, 0.999, 1 - 1e-6], 40)
    a, b = 1.7, 0.6
    noise = double(stats.gamma.ppf(u.numpy(), a))[:, None]

    def mean(phi):
        return (w[:, None] * Gamma(phi["a"], phi["b"]).transform(noise)).sum()

    found = grad(mean)({"a": double([math.log(a)]), "b": double([math.log(b)])})
    assert float(found["a"]) == pytest.approx(a / b, rel=1e-7)
    assert float(found["b"]) == pytest.approx(-a / b, rel=1e-7)
