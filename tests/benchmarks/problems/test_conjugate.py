"""Scalar latents: every exact value against scipy's adaptive quadrature of the densities, gradients against its differences."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import torch
from scipy import integrate, stats

from benchmarks.problems import BetaBernoulli, GammaPoisson, Gaussian1D, GaussianMixtureGuide
from benchmarks.specs import SpecError
from estimators import BLOCKS, Target

PROBLEMS = [
    GammaPoisson(points=2, seed=1),
    GammaPoisson(concentration=0.6, rate=1.5, observations=1, seed=3),
    BetaBernoulli(points=2, seed=1),
    BetaBernoulli(alpha=0.7, beta=1.4, observations=2, seed=5),
    GaussianMixtureGuide(),
    GaussianMixtureGuide(loc1=-0.6, scale2=0.6, weight1=0.7),
]


def laws(problem, parameters):
    """For each data point: prior, guide, log-likelihood of z, the ends of the latent's range; from scipy alone."""
    theta, phi = ({n: leaf.double().numpy() for n, leaf in parameters[b].items()} for b in BLOCKS)
    x = problem.data.double().numpy()
    for point in range(len(x)):
        if problem.name == "gamma-poisson":
            prior = stats.gamma(math.exp(theta["log_prior_concentration"]), scale=math.exp(-theta["log_prior_rate"]))
            guide = stats.gamma(np.exp(phi["log_concentration"][point, 0]), scale=np.exp(-phi["log_rate"][point, 0]))
            law = stats.poisson.logpmf
        elif problem.name == "beta-bernoulli":
            prior = stats.beta(math.exp(theta["log_prior_alpha"]), math.exp(theta["log_prior_beta"]))
            guide = stats.beta(np.exp(phi["log_alpha"][point, 0]), np.exp(phi["log_beta"][point, 0]))
            law = stats.bernoulli.logpmf
        else:
            prior = stats.norm(theta["prior_loc"][0], 1)
            weights = np.exp(phi["logits"][0]) / np.exp(phi["logits"][0]).sum()
            parts = [
                stats.norm(m, math.exp(s)) for m, s in zip(phi["loc"][0, :, 0], phi["log_scale"][0, :, 0], strict=True)
            ]
            guide = Mixture(weights, parts)
            law = stats.norm.logpdf
        values, times = np.unique(x[point], return_counts=True)
        like = lambda z, law=law, v=values, n=times: n @ law(v[:, None], z)  # noqa: E731
        yield prior, guide, like


class Mixture:
    def __init__(self, weights, parts):
        self.weights, self.parts = weights, parts

    def logpdf(self, z):
        return np.logaddexp(*(np.log(w) + part.logpdf(z) for w, part in zip(self.weights, self.parts, strict=True)))

    def ppf(self, p):
        return max((part.ppf(p) for part in self.parts), key=lambda z: abs(z - 0.5))


def integral(function, guide):
    """Over the guide's range by Gauss-Legendre rules, piece by piece between quantiles, for endpoint singularities."""
    ends = [
        guide.ppf(p) for p in [10.0**-k for k in range(18, 0, -1)] + [0.5, 0.9, 0.99, 1 - 1e-4, 1 - 1e-9, 1 - 1e-15]
    ]
    ends = sorted(set(ends))
    return sum(integrate.fixed_quad(function, low, high, n=100)[0] for low, high in itertools.pairwise(ends))


def value_of(problem, name, parameters):
    total = []
    for prior, guide, like in laws(problem, parameters):

        def log_p(z, prior=prior, like=like):
            return prior.logpdf(z) + like(z)

        if name == "elbo":
            total.append(integral(lambda z: np.exp(guide.logpdf(z)) * (log_p(z) - guide.logpdf(z)), guide))  # noqa: B023
        elif name == "log_marginal":
            total.append(math.log(integral(lambda z: np.exp(log_p(z)), Wide(guide, prior))))
        else:
            evidence = math.log(integral(lambda z: np.exp(log_p(z)), Wide(guide, prior)))

            def integrand(z, guide=guide, evidence=evidence, log_p=log_p):
                log_posterior = log_p(z) - evidence
                return np.exp(log_posterior) * (guide.logpdf(z) - log_posterior)

            total.append(integral(integrand, Wide(guide, prior)))
    return float(np.mean(total))


class Wide:
    """Quantiles that hold the prior's, too."""

    def __init__(self, guide, prior):
        self.guide, self.prior = guide, prior

    def ppf(self, p):
        pick = min if p < 0.5 else max
        return pick(self.guide.ppf(p), self.prior.ppf(p))


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.spec)
@pytest.mark.parametrize("name", ["elbo", "log_marginal", "forward_kl"])
def test_exact_targets(name, problem):
    found = problem.exact(Target(name))
    posterior_blocks = ("phi",) if name == "forward_kl" else BLOCKS
    assert set(found.gradient) == set(posterior_blocks)
    assert found.value == pytest.approx(value_of(problem, name, problem.parameters), rel=1e-8, abs=1e-9)
    step = 1e-3
    for block in posterior_blocks:
        for parameter, leaf in found.gradient[block].items():
            for place in range(leaf.numel()):
                values = []
                for sign in (step, -step):
                    moved = {b: {n: t.clone() for n, t in problem.parameters[b].items()} for b in BLOCKS}
                    moved[block][parameter].view(-1)[place] += sign
                    values.append(value_of(problem, name, moved))
                slope = (values[0] - values[1]) / (2 * step)
                assert float(leaf.view(-1)[place]) == pytest.approx(slope, rel=1e-5, abs=3e-6), (block, parameter)


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.spec)
def test_sums_over_the_grid_are_the_closed_forms(problem):
    """The ELBO as a sum over z, and L_1, are what they should be; L_2 lies between, near what quantiles give."""
    from benchmarks.references.on_a_line import summed

    elbo = problem.exact(Target("elbo"))
    value, gradient = summed(problem, problem.parameters, Target("elbo"), problem.mesh)
    assert value == pytest.approx(elbo.value, abs=1e-10)
    for block in BLOCKS:
        for name, leaf in gradient[block].items():
            torch.testing.assert_close(leaf, elbo.gradient[block][name], rtol=1e-8, atol=1e-10)
    two = problem.exact(Target("iwae", 2))
    assert elbo.value < two.value < problem.exact(Target("log_marginal")).value
    assert problem.exact(Target("iwae", 1)).value == elbo.value
    assert problem.exact(Target("renyi", 3, setting=0.5)) is None


def legendre(ends, nodes=40):
    """Nodes and weights of Gauss-Legendre rules between neighbouring ``ends``, along the first axis."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    ends = np.asarray(ends)
    half, middle = np.diff(ends, axis=0)[:, None] / 2, (ends[1:] + ends[:-1])[:, None] / 2
    x, w = (each.reshape(1, nodes, *[1] * (ends.ndim - 1)) for each in (x, w))
    return (middle + half * x).reshape(-1, *ends.shape[1:]), (half * w).reshape(-1, *ends.shape[1:])


def bound_of_two(problem, parameters):
    """E log((w1 + w2) / 2) over the triangle z1 < z2, where the integrand has no kink, in pieces that grow with z2 - z1."""
    total = []
    for prior, guide, like in laws(problem, parameters):
        z1, dz1 = legendre(
            guide.isf([1 - 10.0**-k for k in (17, 13, 9, 6, 4, 3, 2, 1)] + [0.5, 0.1, 1e-2, 1e-3, 1e-5, 1e-8, 1e-13])
        )
        last = guide.isf(1e-17)
        z2, dz2 = legendre(z1 + (last - z1) * np.array([0, 1e-4, 1e-3, 1e-2, 0.03, 0.1, 0.25, 0.5, 1])[:, None])

        def log_w(z, prior=prior, like=like, guide=guide):
            flat = z.ravel()
            return (prior.logpdf(flat) + like(flat) - guide.logpdf(flat)).reshape(z.shape)

        mass = 2 * guide.pdf(z1) * dz1 * guide.pdf(z2) * dz2
        total.append((mass * (np.logaddexp(log_w(z1), log_w(z2)) - math.log(2))).sum() / mass.sum())
    return float(np.mean(total))


@pytest.mark.parametrize("observations", [20, 500, 3000])
@pytest.mark.parametrize(("kind", "parameter"), [(GammaPoisson, "log_rate"), (BetaBernoulli, "log_alpha")])
def test_bounds_of_many_observations(kind, parameter, observations):
    """The more there are, the narrower is the guide and the steeper are the weights within it."""
    problem = kind(observations=observations, seed=1)
    found = problem.exact(Target("iwae", 2))
    assert found.value == pytest.approx(bound_of_two(problem, problem.parameters), abs=1e-7)
    values = []
    for step in (1e-4, -1e-4):
        moved = {b: {n: leaf.clone() for n, leaf in problem.parameters[b].items()} for b in BLOCKS}
        moved["phi"][parameter] += step
        values.append(bound_of_two(problem, moved))
    slope = (values[0] - values[1]) / 2e-4
    assert float(found.gradient["phi"][parameter]) == pytest.approx(slope, rel=1e-5)


@pytest.mark.parametrize(
    "problem",
    [
        GaussianMixtureGuide(scale1=0.03, x=0.4),
        GaussianMixtureGuide(scale1=0.3, scale2=8, x=0.4),
        GaussianMixtureGuide(scale2=100),
        GaussianMixtureGuide(scale1=0.1, scale2=0.2),
        GaussianMixtureGuide(loc2=-40, scale1=1e-3),
    ],
    ids=lambda p: p.spec,
)
def test_mixtures_of_unlike_components(problem):
    """Sums between places that no feature of the integrand escapes, from scipy's densities."""
    ((prior, guide, like),) = laws(problem, problem.parameters)
    centre = (problem.x + problem.prior_loc) / 2
    features = [(problem.loc1, problem.scale1), (problem.loc2, problem.scale2), (centre, math.sqrt(0.5))]
    z, dz = legendre(sorted({m + s * k / 4 for m, s in features for k in range(-400, 401)}))
    log_q, log_p = guide.logpdf(z), prior.logpdf(z) + like(z)
    q, posterior = np.exp(log_q) * dz, stats.norm(centre, math.sqrt(0.5))
    assert problem.exact(Target("elbo")).value == pytest.approx((q * (log_p - log_q)).sum(), rel=1e-12)
    expected = (posterior.pdf(z) * dz * (log_q - posterior.logpdf(z))).sum()
    assert problem.exact(Target("forward_kl")).value == pytest.approx(expected, rel=1e-10)
    expected = 2 * (dz * np.exp((log_p + log_q) / 2)).sum() - 2
    assert problem.exact(Target("f_divergence", setting="hellinger")).value == pytest.approx(expected, rel=1e-10)


def test_a_mean_that_does_not_exist_is_not_claimed_however_little_of_the_guide_is_to_blame():
    """E q/p is infinite where a component is as wide as the prior, root 2 times the posterior."""
    for scale in (1.0, 1.001, 5.0):
        mixed = GaussianMixtureGuide(scale1=scale, weight1=1e-8, loc1=0.6, loc2=0.6)
        assert mixed.exact(Target("f_divergence", setting="chi-square")) is None
    mixed = GaussianMixtureGuide(scale1=0.5, scale2=0.5, loc1=0.9, loc2=0.9)
    plain = Gaussian1D(scale=0.5, loc=0.9, x=mixed.x, prior_loc=mixed.prior_loc)
    expected, found = (each.exact(Target("f_divergence", setting="chi-square")).value for each in (plain, mixed))
    assert found == pytest.approx(expected, rel=1e-9)


def test_bounds_of_many_points():
    problem = GammaPoisson(points=100, seed=2)
    assert problem.exact(Target("iwae", 2)).value == pytest.approx(bound_of_two(problem, problem.parameters), abs=1e-6)


def test_what_no_grid_settles_is_not_claimed():
    """Features of which one is a hundred thousand times as wide as the other; a beta guide whose mass lies closer to 1 than
    numbers do."""
    assert GaussianMixtureGuide(scale1=3e-4, scale2=30).exact(Target("iwae", 2)) is None
    assert BetaBernoulli(beta=0.1, observations=1, seed=0).exact(Target("iwae", 2)) is None


FAR_OFF = GammaPoisson(perturbation=1.5)


@pytest.mark.parametrize("problem", [PROBLEMS[0], PROBLEMS[3], PROBLEMS[4], FAR_OFF], ids=lambda p: p.spec)
def test_two_samples_by_monte_carlo(problem):
    """|z| < 4.5 of 200,000 draws of log mean w by scipy's own samplers and densities."""
    rng, values = np.random.default_rng(0), []
    for prior, guide, like in laws(problem, problem.parameters):
        if isinstance(guide, Mixture):
            chosen = rng.random((200_000, 2)) < guide.weights[0]
            z = np.where(chosen, *(part.rvs((200_000, 2), random_state=rng) for part in guide.parts))
        else:
            z = guide.rvs((200_000, 2), random_state=rng)
        flat = z.ravel()
        log_w = (prior.logpdf(flat) + like(flat) - guide.logpdf(flat)).reshape(-1, 2)
        values.append(np.logaddexp(log_w[:, 0], log_w[:, 1]) - math.log(2))
    values = np.mean(values, 0)
    z = (values.mean() - problem.exact(Target("iwae", 2)).value) / (values.std() / math.sqrt(len(values)))
    assert abs(z) < 4.5


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.spec)
def test_densities(problem):
    z = {"gamma-poisson": [0.2, 1.7], "beta-bernoulli": [0.2, 0.7]}.get(problem.name, [-0.3, 1.1])
    at = torch.tensor(z, dtype=torch.float64)[:, None, None].expand(2, len(problem.data), 1)
    log_joint = problem.log_joint(problem.parameters["theta"], at)
    log_q = problem.guide(problem.parameters["phi"]).log_prob(at)
    for point, (prior, guide, like) in enumerate(laws(problem, problem.parameters)):
        np.testing.assert_allclose(log_joint[:, point].numpy(), prior.logpdf(z) + like(np.array(z)), rtol=1e-12)
        np.testing.assert_allclose(log_q[:, point].numpy(), guide.logpdf(np.array(z)), rtol=1e-12)


def test_a_mixture_of_one_and_the_same_is_the_plain_problem():
    mixed = GaussianMixtureGuide(loc1=0.4, loc2=0.4, scale1=0.8, scale2=0.8)
    plain = Gaussian1D(loc=0.4, scale=0.8, x=1.0, prior_loc=0.2)
    for target in (Target("elbo"), Target("iwae", 2), Target("forward_kl"), Target("log_marginal")):
        found, expected = mixed.exact(target), plain.exact(target)
        assert found.value == pytest.approx(expected.value, abs=1e-11)
        assert float(found.gradient["phi"]["loc"].sum()) == pytest.approx(
            float(expected.gradient["phi"]["loc"].sum()), abs=1e-10
        )


@pytest.mark.parametrize("problem", PROBLEMS, ids=lambda p: p.spec)
def test_the_perturbation_is_from_the_posterior(problem):
    if problem.name != "gaussian-mixture-guide":
        still = replace(problem, perturbation=0.0)
        assert still.exact(Target("forward_kl")).value == pytest.approx(0.0, abs=1e-12)
        assert still.exact(Target("elbo")).value == pytest.approx(still.exact(Target("log_marginal")).value, abs=1e-12)
        assert all(leaf.abs().max() < 1e-11 for leaf in still.exact(Target("elbo")).gradient["phi"].values())


@pytest.mark.parametrize("problem", PROBLEMS[::2], ids=lambda p: p.spec)
def test_single_precision_and_seeds(problem):
    single = replace(problem, dtype="float32")
    for target in (Target("elbo"), Target("iwae", 2), Target("forward_kl")):
        assert single.exact(target).value == problem.exact(target).value
        assert all(leaf.dtype == torch.float32 for leaf in single.exact(target).gradient["phi"].values())
    assert single.spec == problem.spec
    if hasattr(problem, "seed"):
        assert not torch.equal(replace(problem, seed=2, points=9).data, replace(problem, seed=3, points=9).data)


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (GammaPoisson, {"concentration": 0.0}),
        (GammaPoisson, {"rate": -1.0}),
        (GammaPoisson, {"concentration": 1e16}),
        (BetaBernoulli, {"beta": math.inf}),
        (GammaPoisson, {"points": 0}),
        (BetaBernoulli, {"alpha": 0.0}),
        (BetaBernoulli, {"observations": 0}),
        (BetaBernoulli, {"seed": -1}),
        (GaussianMixtureGuide, {"scale1": 0.0}),
        (GaussianMixtureGuide, {"weight1": 1.0}),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind, settings):
    with pytest.raises(SpecError, match=f"{kind.name}: {next(iter(settings))}"):
        kind(**settings)


@pytest.mark.parametrize("seed", range(8))
def test_a_mean_that_does_not_exist_is_not_known(seed):
    """E_q q/p of two gamma densities, in closed form; infinite where q's rate is below half of the posterior's, or so."""
    problem = GammaPoisson(perturbation=0.9, seed=seed)
    a, b = problem.concentration + float(problem.data.sum()), problem.rate + problem.observations
    c, r = (float(problem.parameters["phi"][f"log_{name}"].exp()) for name in ("concentration", "rate"))
    found = problem.exact(Target("f_divergence", setting="chi-square"))
    shape, rate = 2 * c - a, 2 * r - b
    if shape <= 0 or rate <= 0:
        assert found is None
    elif found is not None:
        log_ratio = 2 * (c * math.log(r) - math.lgamma(c)) + math.lgamma(a) - a * math.log(b)
        log_ratio += math.lgamma(shape) - shape * math.log(rate) - problem.exact(Target("log_marginal")).value
        assert found.value == pytest.approx(1 - math.exp(log_ratio), rel=1e-7)
    assert (found is None) == (seed not in (1, 7))


LARGE = [
    GammaPoisson(concentration=1e10, perturbation=1e-6, seed=1),
    GammaPoisson(concentration=1e12, rate=1e10, perturbation=1e-6),
    BetaBernoulli(alpha=1e10, beta=1e10, perturbation=1e-6),
    BetaBernoulli(alpha=2e12, beta=1e10, perturbation=1e-6),
]


@pytest.mark.parametrize("problem", LARGE, ids=lambda p: p.spec)
def test_priors_of_many_observations_worth(problem):
    """log p(x) and the ELBO from log Gamma in fifty digits; sums over densities, which are all rounding, are not claimed."""
    with mpmath.workdps(50):
        theta, phi = ([mpmath.exp(float(leaf)) for leaf in problem.parameters[block].values()] for block in BLOCKS)
        x, n = mpmath.mpf(float(problem.data.sum())), problem.observations
        if isinstance(problem, GammaPoisson):
            (a, b), (c, r) = theta, phi
            counts = sum(mpmath.loggamma(mpmath.mpf(float(each)) + 1) for each in problem.data[0])
            prior = a * mpmath.log(b) - mpmath.loggamma(a) - counts
            log_marginal = prior + mpmath.loggamma(a + x) - (a + x) * mpmath.log(b + n)
            mean_log = mpmath.digamma(c) - mpmath.log(r)
            entropy = c - mpmath.log(r) + mpmath.loggamma(c) + (1 - c) * mpmath.digamma(c)
            elbo = prior + (a - 1 + x) * mean_log - (b + n) * c / r + entropy
        else:
            (a, b), (c, d) = theta, phi

            def log_beta(a, b):
                return mpmath.loggamma(a) + mpmath.loggamma(b) - mpmath.loggamma(a + b)

            log_marginal = log_beta(a + x, b + n - x) - log_beta(a, b)
            logs = (a + x - c) * mpmath.digamma(c) + (b + n - x - d) * mpmath.digamma(d)
            elbo = log_beta(c, d) - log_beta(a, b) + logs - (a + b + n - c - d) * mpmath.digamma(c + d)
        assert problem.exact(Target("log_marginal")).value == pytest.approx(float(log_marginal), abs=1e-9)
        assert problem.exact(Target("elbo")).value == pytest.approx(float(elbo), abs=1e-9)
    assert problem.exact(Target("iwae", 2)) is None
