"""Users' Pyro models: drawn from explicit noise, vectorised, and nowhere other than in Pyro itself."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy import special, stats
from torch.func import grad

import estimators
from benchmarks.check import check
from benchmarks.problems import PyroProblem, pyro_sites, quantiles
from benchmarks.registry import Registry
from benchmarks.specs import SpecError
from estimators import Target
from estimators.replicates import stacked

FILE = str(Path(__file__).parents[1] / "support" / "pyro_examples.py")
SCHOOLS = str(Path(__file__).parents[2] / "examples" / "eight_schools.py")


def program(model, q, args, **settings):
    guide = q if q.startswith("Auto") else f"{FILE}:{q}"
    return PyroProblem(model=f"{FILE}:{model}", q=guide, args=f"{FILE}:{args}", **settings)


def schools(q="AutoNormal", **settings):
    return PyroProblem(model=f"{SCHOOLS}:model", q=q, args=f"{SCHOOLS}:data", **settings)


PROGRAMS = {
    "eight schools, AutoNormal": lambda: schools(),
    "eight schools, AutoMultivariateNormal": lambda: schools("AutoMultivariateNormal"),
    "eight schools, AutoLowRankMultivariateNormal": lambda: schools("AutoLowRankMultivariateNormal"),
    "regression": lambda: program("Regression", "AutoNormal", "regression_data", steps=50),
    "vae": lambda: program("vae", "vae_guide", "vae_data"),
    "subsampled": lambda: program("subsampled", "normal_guide", "outcomes"),
    "coin": lambda: program("coin", "coin_guide", "flips"),
    "mixture": lambda: program("mixture", "mixture_guide", "clustered"),
    "switch": lambda: program("switch", "switch_guide", "outcomes"),
}


def rows(name, problem, K, count, seed=0):
    estimator = estimators.get(name, num_samples=K)
    return stacked(estimator, problem, problem.parameters, count, torch.Generator().manual_seed(seed)).double()


def pyro_rows(problem, count):
    """Gradients of Pyro's own Trace_ELBO, one particle at a time."""
    loss, found, own = pyro.infer.Trace_ELBO(), [], problem.program
    with own.scope(), torch.random.fork_rng():
        pyro.set_rng_seed(3)
        leaves = [leaf for block in ("theta", "phi") for leaf in own.leaves[block].values()]
        for _ in range(count):
            for leaf in leaves:
                leaf.grad = None
            value = -loss.loss_and_grads(own.model, own.guide, *own.args, **own.kwargs)
            grads = [torch.zeros_like(leaf) if leaf.grad is None else -leaf.grad for leaf in leaves]
            found.append(torch.cat([torch.tensor([value]), *(g.detach().reshape(-1) for g in grads)]).double())
            for leaf in leaves:
                leaf.grad = None
    return torch.stack(found)


@pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS)
def test_gradients_have_the_mean_of_pyros_own(make):
    """|z| < 5 for each coordinate: with some 1,000 in all, a false alarm has probability 6e-4; seeds are fixed."""
    problem = make()
    name = "leave-one-out" if problem.lacking else "reparameterization"
    ours, theirs = rows(name, problem, 4, 4000), pyro_rows(problem, 300)
    error = (ours.var(0) / len(ours) + theirs.var(0) / len(theirs)).sqrt()
    difference = (ours.mean(0) - theirs.mean(0)).abs()
    assert bool((difference <= 5 * error + 1e-6 * theirs.mean(0).abs()).all()), float((difference / error).max())
    assert float(ours.mean(0)[1:].norm()) > 5 * float((ours.var(0) / len(ours)).sqrt()[1:].max())


@pytest.mark.parametrize("make", PROGRAMS.values(), ids=PROGRAMS)
def test_families_agree_on_the_multi_sample_bound(make):
    """|z| < 5, as above: score-based and path-based gradients of L_4."""
    problem = make()
    pair = ("vimco", "ovis") if problem.lacking else ("vimco", "dreg")
    one, other = (rows(name, problem, 4, 4000, seed) for seed, name in enumerate(pair))
    error = ((one.var(0) + other.var(0)) / len(one)).sqrt()
    assert bool(((one.mean(0) - other.mean(0)).abs() <= 5 * error + 1e-9).all())


def test_a_beta_guide_has_the_exact_elbo_and_gradient():
    """Conjugate: ELBO = E log p(flips | f) - KL(Beta(a, b) || Beta(2, 3)), differentiated in log a and log b."""
    problem = program("coin", "coin_guide", "flips")

    def elbo(log_a, log_b):
        a, b = log_a.exp(), log_b.exp()
        digamma = torch.digamma
        mean_log, mean_log1 = digamma(a) - digamma(a + b), digamma(b) - digamma(a + b)
        kl = torch.distributions.kl_divergence(
            torch.distributions.Beta(a, b, validate_args=False),
            torch.distributions.Beta(a.new_tensor(2.0), a.new_tensor(3.0)),
        )
        return 3 * mean_log + 2 * mean_log1 - kl

    start = torch.tensor(3.0).double().log(), torch.tensor(2.0).double().log()
    exact = torch.stack(grad(elbo, argnums=(0, 1))(*start))
    ours = rows("reparameterization", problem, 8, 20_000)
    z = (ours.mean(0) - torch.cat([elbo(*start)[None], exact])) / (ours.var(0) / len(ours)).sqrt()
    assert float(z.abs().max()) < 4.5  # 2e-5 for three
    assert problem.dtype == "float64"


UNIVARIATE = [
    dist.Uniform(-1.0, 2.0), dist.Laplace(0.5, 2.0), dist.Cauchy(0.0, 1.5), dist.Exponential(0.7), dist.HalfNormal(2.0),
    dist.HalfCauchy(1.0), dist.Gumbel(0.3, 1.2), dist.LogNormal(0.2, 0.5), dist.Gamma(0.4, 2.0), dist.Gamma(7.0, 0.5),
    dist.Normal(1.0, 3.0),
]  # fmt: skip


@pytest.mark.parametrize("fn", UNIVARIATE, ids=lambda fn: type(fn).__name__)
def test_a_draw_is_the_quantile_of_its_noise(fn):
    fn = fn.expand([5])
    (noise,) = pyro_sites.noise_of(fn)
    u = torch.tensor([1e-3, 0.2, 0.5, 0.8, 0.999])
    value = pyro_sites.draw(fn, iter([torch.special.ndtri(u) if noise.law == "normal" else u]))
    law = {"Gamma": lambda: stats.gamma(float(fn.concentration[0]), scale=1 / float(fn.rate[0]))}.get(type(fn).__name__)
    cdf = law().cdf(value.numpy()) if law else fn.cdf(value).numpy()
    folded = "Half" in type(fn).__name__  # the absolute value of a draw of the whole law
    np.testing.assert_allclose(cdf, (2 * u - 1).abs().numpy() if folded else u.numpy(), rtol=1e-5, atol=1e-6)
    assert pyro_sites.smooth(fn)


@pytest.mark.parametrize("concentration", [0.05, 0.6, 1.0, 4.5, 300.0])
def test_the_gamma_quantile_and_its_derivative_against_scipy(concentration):
    u = torch.tensor([1e-4, 0.1, 0.5, 0.9, 1 - 1e-6], dtype=torch.float64)
    a = torch.tensor(concentration, dtype=torch.float64)
    value, slope = torch.func.jvp(lambda a: quantiles.gamma_quantile(u, a), (a,), (torch.ones_like(a),))
    np.testing.assert_allclose(value.numpy(), stats.gamma.ppf(u.numpy(), concentration), rtol=1e-7)
    step = 1e-4 * concentration
    high, low = (special.gammaincinv(concentration + sign * step, u.numpy()) for sign in (1, -1))
    np.testing.assert_allclose(slope.numpy(), (high - low) / (2 * step), rtol=1e-4)


def test_laws_of_several_numbers():
    """Moments of Dirichlet, Student t, multivariate and low-rank normals; 4.5 standard errors each."""
    g = torch.Generator().manual_seed(5)

    def sample(fn, count=20_000):
        noises = pyro_sites.noise_of(fn)
        draw = {"normal": torch.randn, "uniform": torch.rand}
        noise = [draw[law]((count, *shape), generator=g, dtype=torch.float64) for law, shape in noises]
        return torch.func.vmap(lambda *each: pyro_sites.draw(fn, iter(each)))(*noise)

    def agrees(x, mean, variance):
        se = x.std(0) / math.sqrt(len(x))
        assert bool(((x.mean(0) - mean).abs() < 4.5 * se).all())
        fourth = ((x - x.mean(0)) ** 4).mean(0)
        error = ((fourth - x.var(0) ** 2) / len(x)).sqrt()
        assert bool(((x.var(0) - variance).abs() < 4.5 * error).all())

    alpha = torch.tensor([0.5, 2.0, 3.0], dtype=torch.float64)
    x, total = sample(dist.Dirichlet(alpha)), alpha.sum()
    agrees(x, alpha / total, alpha * (total - alpha) / (total**2 * (total + 1)))
    t = sample(dist.StudentT(torch.tensor(9.0, dtype=torch.float64), 1.0, 2.0))
    agrees(t[:, None], torch.tensor([1.0]), torch.tensor([4 * 9 / 7]))
    tril = torch.tensor([[1.0, 0.0], [0.7, 0.5]], dtype=torch.float64)
    normal = dist.MultivariateNormal(torch.ones(2, dtype=torch.float64), scale_tril=tril)
    agrees(sample(normal), normal.mean, normal.variance)
    low = dist.LowRankMultivariateNormal(torch.zeros(3).double(), torch.ones(3, 1).double(), torch.ones(3).double())
    agrees(sample(low), low.mean, low.variance)


def test_discrete_draws_follow_their_probabilities():
    probs = torch.tensor([0.2, 0.5, 0.3])
    u = torch.linspace(0.0005, 0.9995, 1000)
    value = pyro_sites.draw(dist.Categorical(probs).expand([1000]), iter([u]))
    assert [(value == c).sum().item() for c in range(3)] == [200, 500, 300]
    assert float(pyro_sites.draw(dist.Bernoulli(torch.tensor(0.3)).expand([1000]), iter([u])).mean()) == pytest.approx(
        0.3
    )
    assert not pyro_sites.smooth(dist.Categorical(probs))


def test_all_samples_of_an_estimate_look_at_one_subset():
    problem = program("subsampled", "normal_guide", "outcomes")
    guide = problem.guide(problem.parameters["phi"])
    z = guide.transform(guide.noise((3, 4), torch.Generator().manual_seed(0)))
    assert z["data"].shape == (3, 4, 5)
    assert bool((z["data"] == z["data"][:, :1]).all()) and not bool((z["data"][0, 0] == z["data"][1, 0]).all())
    assert all(len(set(row.tolist())) == 5 for row in z["data"][:, 0])


def test_weights_by_plate_are_those_of_the_points_alone():
    """The joint weight is the product over the plate; the mean over its elements is the joint ELBO divided by their number."""
    joint, each = (program("vae", "vae_guide", "vae_data", plate=plate) for plate in ("", "data"))
    noise = joint.guide(joint.parameters["phi"]).noise((6,), torch.Generator().manual_seed(1))

    def log_w(problem):
        guide = problem.guide(problem.parameters["phi"])
        z = guide.transform(noise)
        return problem.log_joint(problem.parameters["theta"], z) - guide.log_prob(z)

    assert log_w(each).shape == (6, 8) and log_w(joint).shape == (6,)
    torch.testing.assert_close(log_w(each).sum(1), log_w(joint))
    one, other = (rows("reparameterization", problem, 2, 16) for problem in (joint, each))
    torch.testing.assert_close(one, 8 * other, rtol=1e-4, atol=1e-5)
    bound = [rows("iwae", problem, 64, 200)[:, 0].mean().item() for problem in (joint, each)]
    assert bound[0] < 8 * bound[1]  # one weight for all data points: a looser bound


def test_nothing_of_the_users_is_changed():
    from pyro_examples import ENCODER

    before = {name: leaf.clone() for name, leaf in ENCODER.state_dict().items()}
    pyro.get_param_store().clear()
    mine = pyro.param("mine", torch.tensor(2.0))
    state = torch.get_rng_state()
    pyro.enable_validation(True)
    problem = program("vae", "vae_guide", "vae_data")
    rows("iwae", problem, 4, 8)
    assert torch.equal(torch.get_rng_state(), state)
    assert list(pyro.get_param_store().keys()) == ["mine"] and pyro.param("mine") is mine
    assert torch.distributions.Distribution._validate_args and pyro.poutine.util.is_validation_enabled()
    for name, leaf in ENCODER.state_dict().items():
        assert torch.equal(leaf, before[name])
    pyro.get_param_store().clear()


@pytest.mark.parametrize(
    ("q", "model", "settings", "words"),
    [
        ("empty_guide", "whole", {}, "latent site 'mu' of the model is not in the guide"),
        ("normal_guide", "sharing", {}, "parameter 'loc' is used by model and guide"),
        ("AutoDelta", "whole", {}, "the guide draws nothing"),
        ("AutoNorml", "whole", {}, "did you mean 'AutoNormal'"),
        ("normal_gide", "whole", {}, "did you mean 'normal_guide'"),
        ("normal_guide", "whole", {"plate": "data"}, "guide site 'mu' stands outside plate 'data'"),
        ("normal_guide", "whole", {"steps": -1}, "steps must not be negative"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(q, model, settings, words):
    with pytest.raises(SpecError, match=words) as raised:
        guide = q if q.startswith("Auto") else f"{FILE}:{q}"
        PyroProblem(model=f"{FILE}:{model}", q=guide, args=f"{FILE}:outcomes", **settings)
    assert "\n" not in str(raised.value)


def test_path_estimators_are_refused_with_the_site_named():
    reason = estimators.get("iwae").refuses(PROGRAMS["mixture"]())
    assert reason is not None and "'which' (Categorical)" in reason


def judged(name, K, problem, seed=0):
    (found,) = check(Registry().estimator(name, K), [problem], override=None, seed=seed, max_draws=2_000_000)
    return found


def test_check_holds_families_against_one_another():
    assert judged("dreg", 2, program("whole", "normal_guide", "outcomes")).finding.outcome == "PASS"
    biased = judged("iwae-stl", 2, program("whole", "normal_guide", "outcomes")).finding
    assert biased.outcome == "BIASED" and "against vimco" in biased.reason


def test_a_silently_wrong_path_derivative_is_found_and_the_score_function_is_not_blamed():
    """pyro#3289's kind: a latent detached on its way to the likelihood."""
    problem = program("silent", "normal_guide", "outcomes")
    wrong = judged("reparameterization", 2, problem).finding
    assert wrong.outcome == "BIASED" and wrong.direction.startswith("phi")
    assert judged("leave-one-out", 2, program("whole", "normal_guide", "outcomes")).finding.outcome == "PASS"


def test_exact_references_are_used_when_told(tmp_path):
    plugin = tmp_path / "exact.py"
    plugin.write_text(
        "def exact(target):\n"
        "    if target.name != 'elbo':\n"
        "        return None\n"
        "    return {'value': -1.0, 'phi': {'loc': 0.5, 'scale': 0.25}}\n"
    )
    problem = program("whole", "normal_guide", "outcomes", truth=f"{plugin}:exact")
    reference = problem.exact(Target("elbo"))
    assert reference.value == -1.0 and float(reference.gradient["phi"]["loc"]) == 0.5
    assert problem.exact(Target("iwae", 4)) is None
    assert "stated by" in reference.method


def test_the_identity_changes_with_the_file(tmp_path):
    one = tmp_path / "one.py"
    one.write_text(Path(FILE).read_text())
    before = PyroProblem(model=f"{one}:whole", q=f"{one}:normal_guide", args=f"{one}:outcomes").version
    one.write_text(one.read_text() + "\n# changed\n")
    after = PyroProblem(model=f"{one}:whole", q=f"{one}:normal_guide", args=f"{one}:outcomes").version
    assert before != after


DISCRETE_LAWS = [
    dist.Poisson(3.7), dist.Poisson(900.0), dist.Geometric(0.3), dist.Binomial(5, torch.tensor(0.3)),
    dist.NegativeBinomial(2.5, torch.tensor(0.4)), dist.VonMises(0.7, 2.3), dist.VonMises(0.0, 200.0),
    dist.MixtureSameFamily(dist.Categorical(torch.tensor([0.3, 0.7])), dist.Normal(torch.tensor([-2.0, 3.0]), 0.5)),
]  # fmt: skip


@pytest.mark.parametrize("fn", DISCRETE_LAWS, ids=lambda fn: type(fn).__name__)
def test_other_laws_follow_scipys(fn):
    """Kolmogorov and Smirnov's test at 1e-6, counts spread evenly over their steps."""
    g = torch.Generator().manual_seed(9)
    noises = pyro_sites.noise_of(fn)
    noise = [(torch.randn if law == "normal" else torch.rand)((6000, *size), generator=g) for law, size in noises]
    x = torch.func.vmap(lambda *each: pyro_sites.draw(fn, iter(each)))(*noise).double().numpy()
    spread = np.random.default_rng(3).random(len(x))
    name = type(fn).__name__
    if name == "VonMises":
        u = stats.vonmises(float(fn.concentration), loc=float(fn.loc)).cdf(x)
    elif name == "MixtureSameFamily":
        u = 0.3 * stats.norm(-2, 0.5).cdf(x) + 0.7 * stats.norm(3, 0.5).cdf(x)
    else:
        law = {
            "Poisson": lambda: stats.poisson(float(fn.rate)), "Geometric": lambda: stats.geom(0.3, loc=-1),
            "Binomial": lambda: stats.binom(5, 0.3), "NegativeBinomial": lambda: stats.nbinom(2.5, 0.6),
        }[name]()  # fmt: skip
        u = law.cdf(x - 1) + spread * law.pmf(x)
    assert stats.kstest(u, "uniform").pvalue > 1e-6
    assert not pyro_sites.smooth(fn)


def test_a_correlation_matrix_follows_its_density_as_torchs_own_does_not(finding):
    """Each correlation of LKJ(eta) in D dimensions is 2 Beta(a, a) - 1, a = eta + (D - 2) / 2: its square's mean is 1 / (2a + 1)."""
    fn, g = dist.LKJCholesky(4, torch.tensor(1.5).double()), torch.Generator().manual_seed(2)
    noise = [
        (torch.randn if law == "normal" else torch.rand)((6000, *size), generator=g, dtype=torch.float64)
        for law, size in pyro_sites.noise_of(fn)
    ]
    factor = torch.func.vmap(lambda *each: pyro_sites.draw(fn, iter(each)))(*noise)
    below = torch.ones(4, 4).tril(-1).bool()

    def scores(factor):
        squares = (factor @ factor.mT)[:, below].square()
        return (squares.mean(0) - 1 / 6) / (squares.std(0) / len(squares) ** 0.5)

    assert float(scores(factor).abs().max()) < 4.5
    torch.testing.assert_close(factor.square().sum(-1), torch.ones(6000, 4).double())
    with torch.random.fork_rng():
        torch.manual_seed(4)
        theirs = fn.sample((6000,))
    finding("torch", "2.13.0", float(scores(theirs).abs().max()) > 10, "LKJCholesky.sample is not of its density")
