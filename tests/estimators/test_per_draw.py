"""Every estimator against plain autograd of its objective, written out from the formula, on the same draw."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import estimators
from benchmarks.problems import Gaussian1D, LinearGaussian, Rainforth
from estimators import DiagonalGaussian

PROBLEMS = {
    "gaussian-1d": Gaussian1D(loc=1.6, scale=0.6, x=1.5, prior_loc=0.5),
    "linear-gaussian": LinearGaussian(dim=3, data_dim=4, points=2, seed=3),
    "rainforth": Rainforth(dim=3, points=4, perturbation=0.4),
}
K = 4


def leaves(problem):
    """Fresh leaf copies of the parameters."""
    return {
        block: {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
        for block, leaves in problem.parameters.items()
    }


def log_normal(x, loc, log_scale):
    return torch.distributions.Normal(loc, log_scale.exp()).log_prob(x).sum(-1)


def parts(problem, p, noise):
    """log p(x, z), log q(z) and z, all live in the parameters, through torch.distributions."""
    theta, phi = p["theta"], p["phi"]
    zero = torch.zeros((), dtype=torch.float64)
    if problem.name == "gaussian-1d" or problem.name == "linear-gaussian":
        loc, log_scale = phi["loc"], phi["log_scale"]
    else:
        loc = problem.data @ phi["weight"].T + phi["bias"]
        log_scale = torch.full_like(loc, 0.5 * math.log(2 / 3))
    z = loc + log_scale.exp() * noise

    def log_p(z, theta=theta):
        if problem.name == "linear-gaussian":
            mean = z @ theta["weight"].T + theta["bias"]
            return log_normal(z, zero, zero) + log_normal(problem.data, mean, theta["log_noise_scale"])
        return log_normal(z, theta["prior_loc"], zero) + log_normal(problem.data, z, zero)

    def log_q(z, held=False):
        return log_normal(z, loc.detach() if held else loc, log_scale.detach() if held else log_scale)

    return log_p, log_q, z


def log_mean_exp(x):
    return x.logsumexp(0) - math.log(x.shape[0])


def sumo_value(log_w, m):
    """S from the definition: prefixes one by one."""
    survival = [1 / j if j < 80 else 0.9 ** (j - 80) / 80 for j in range(1, log_w.shape[0] - m + 1)]
    value = log_mean_exp(log_w[:m])
    for j, tail in enumerate(survival, 1):
        value = value + (log_mean_exp(log_w[: m + j]) - log_mean_exp(log_w[: m + j - 1])) / tail
    return value


def objectives(name, log_p, log_q, z):
    """The scalars (mean over points) whose theta- and phi-gradients the estimate is, and its value."""
    held = z.detach()
    log_w_model = log_p(held) - log_q(held, held=True).detach()  # live in theta alone
    log_w = log_p(z) - log_q(z)  # live in everything
    path = log_p(z) - log_q(z, held=True)
    numbers = log_w.detach()
    w = numbers.softmax(0)
    score = log_q(held)
    n = K
    if name == "score-function":
        theta, phi, value = log_w_model.mean(0), (numbers * score).mean(0), numbers.mean(0)
    elif name == "leave-one-out":
        # -1/2 the unbiased sample variance of log w, z held
        theta, value = log_w_model.mean(0), numbers.mean(0)
        phi = -0.5 * (log_p(held).detach() - score).var(0, unbiased=True)
    elif name == "reparameterization":
        theta, phi, value = log_w_model.mean(0), log_w.mean(0), numbers.mean(0)
    elif name == "sticking-the-landing":
        theta, phi, value = log_w_model.mean(0), path.mean(0), numbers.mean(0)
    elif name == "iwae":
        theta, phi, value = log_mean_exp(log_w_model), log_mean_exp(log_w), log_mean_exp(numbers)
    elif name == "iwae-stl":
        theta, phi, value = log_mean_exp(log_w_model), log_mean_exp(path), log_mean_exp(numbers)
    elif name == "dreg":
        theta, phi, value = log_mean_exp(log_w_model), (w**2 * path).sum(0), log_mean_exp(numbers)
    elif name == "reweighted-wake-sleep":
        theta, phi, value = log_mean_exp(log_w_model), (w * score).sum(0), log_mean_exp(numbers)
    elif name == "reweighted-wake-sleep-dreg":
        theta, phi, value = log_mean_exp(log_w_model), ((w - w**2) * path).sum(0), log_mean_exp(numbers)
    elif name in ("miwae", "piwae"):  # two groups of K / 2

        def halves(x):
            return 0.5 * (log_mean_exp(x[: n // 2]) + log_mean_exp(x[n // 2 :]))

        both = halves if name == "miwae" else log_mean_exp
        theta, phi, value = both(log_w_model), halves(log_w), both(numbers)
    elif name in ("multi-sample-score", "vimco", "ovis"):
        signal = []
        for k in range(n):
            rest = torch.cat([numbers[:k], numbers[k + 1 :]])
            if name == "multi-sample-score":
                signal.append(log_mean_exp(numbers) - w[k])
            elif name == "vimco":  # w_k replaced by the geometric mean of the others
                replaced = torch.cat([rest, rest.mean(0, keepdim=True)])
                signal.append(log_mean_exp(numbers) - log_mean_exp(replaced) - w[k])
            else:
                signal.append(-torch.log1p(-w[k]) - w[k])
        theta, value = log_mean_exp(log_w_model), log_mean_exp(numbers)
        phi = (torch.stack(signal) * score).sum(0)
    elif name == "jackknife":

        def jack(x):
            out = [log_mean_exp(torch.cat([x[:j], x[j + 1 :]])) for j in range(n)]
            return n * log_mean_exp(x) - (n - 1) * torch.stack(out).mean(0)

        theta, phi, value = jack(log_w_model), jack(log_w), jack(numbers)
    elif name.startswith("multilevel"):  # four samples: level 1 was drawn

        def multilevel(x):
            top = log_mean_exp(x) - 0.5 * (log_mean_exp(x[:2]) + log_mean_exp(x[2:]))
            if name == "multilevel-single-sample":
                return x.mean(0) + top / (0.6 * 0.4)
            low = 0.5 * (log_mean_exp(x[:2]) + log_mean_exp(x[2:])) - x.mean(0)
            return x.mean(0) + low + top / 0.4

        theta, value = multilevel(log_w_model), multilevel(numbers)
        phi = -multilevel(log_w).square()
    elif name == "sumo":
        theta, value = sumo_value(log_w_model, 1), sumo_value(numbers, 1)
        phi = -sumo_value(log_w, 1).square()
    else:
        raise KeyError(name)
    return theta.mean(), phi.mean(), value.mean()


RULES = [
    "score-function", "leave-one-out", "reparameterization", "sticking-the-landing", "iwae", "iwae-stl", "dreg", "miwae",
    "piwae", "multi-sample-score", "vimco", "ovis", "jackknife", "sumo", "multilevel-russian-roulette",
    "multilevel-single-sample", "reweighted-wake-sleep", "reweighted-wake-sleep-dreg",
]  # fmt: skip


def agrees(got, expected):
    for name, leaf in expected.items():
        torch.testing.assert_close(got[name], leaf, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
@pytest.mark.parametrize("name", RULES)
def test_a_weights_rule_is_the_gradient_of_its_written_out_objective(name, problem):
    estimator = estimators.get(name, num_samples=1 if estimators.REGISTRY[name].random_cost else K)
    noise = torch.randn(K, *problem.guide(problem.parameters["phi"]).loc.shape, dtype=torch.float64,
                        generator=torch.Generator().manual_seed(5))  # fmt: skip
    got = estimator.gradient(problem, problem.parameters, noise)
    p = leaves(problem)
    theta, phi, value = objectives(name, *parts(problem, p, noise))
    torch.testing.assert_close(got.value, value, rtol=1e-11, atol=1e-12)
    agrees(got.theta, dict(zip(p["theta"], torch.autograd.grad(theta, list(p["theta"].values())), strict=True)))
    agrees(got.phi, dict(zip(p["phi"], torch.autograd.grad(phi, list(p["phi"].values())), strict=True)))


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS)
def test_analytic_kl(problem):
    noise = torch.randn(K, *problem.guide(problem.parameters["phi"]).loc.shape, dtype=torch.float64,
                        generator=torch.Generator().manual_seed(5))  # fmt: skip
    got = estimators.get("reparameterization-analytic-kl", num_samples=K).gradient(problem, problem.parameters, noise)
    p = leaves(problem)
    log_p, _, z = parts(problem, p, noise)
    zero = torch.zeros((), dtype=torch.float64)
    prior_loc = p["theta"].get("prior_loc", zero)
    if problem.name == "rainforth":
        loc = problem.data @ p["phi"]["weight"].T + p["phi"]["bias"]
        log_scale = torch.full_like(loc, 0.5 * math.log(2 / 3))
    else:
        loc, log_scale = p["phi"]["loc"], p["phi"]["log_scale"]
    kl = (0.5 * ((2 * log_scale).exp() + (loc - prior_loc) ** 2 - 1) - log_scale).sum(-1)
    objective = ((log_p(z) - log_normal(z, prior_loc, zero)).mean(0) - kl).mean()
    torch.testing.assert_close(got.value, objective.detach(), rtol=1e-11, atol=1e-12)
    for block in ("theta", "phi"):
        expected = torch.autograd.grad(objective, list(p[block].values()), retain_graph=True, allow_unused=True)
        for (name, leaf), grad in zip(p[block].items(), expected, strict=True):
            agrees(getattr(got, block), {name: torch.zeros_like(leaf) if grad is None else grad})


def test_bonnet_price_against_full_hessians():
    problem = PROBLEMS["linear-gaussian"]
    q = problem.guide(problem.parameters["phi"])
    noise = torch.randn(K, *q.loc.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    got = estimators.get("bonnet-price", num_samples=K).gradient(problem, problem.parameters, noise)
    log_p, log_q, z = parts(problem, leaves(problem), noise)
    loc, log_scale = torch.zeros_like(q.loc), torch.zeros_like(q.loc)

    def f(row, k, b):
        latent = z.detach()[k].clone()
        latent = torch.cat([latent[:b], row[None], latent[b + 1 :]])
        return (log_p(latent) - log_q(latent, held=True))[b]

    for k in range(K):
        for b in range(problem.points):
            row = z.detach()[k, b]
            slope = torch.autograd.functional.jacobian(lambda r, k=k, b=b: f(r, k, b), row)
            hessian = torch.autograd.functional.hessian(lambda r, k=k, b=b: f(r, k, b), row)
            loc[b] += slope / K / problem.points
            log_scale[b] += q.scale[b] ** 2 * hessian.diagonal() / K / problem.points
    torch.testing.assert_close(got.phi["loc"], loc, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(got.phi["log_scale"], log_scale, rtol=1e-10, atol=1e-12)


def test_sticking_the_landing_is_zero_in_every_draw_at_the_posterior():
    problem = Gaussian1D(loc=0.5, scale=math.sqrt(0.5), x=1.0, prior_loc=0.0)
    noise = torch.randn(1000, 1, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for eps in noise:
        got = estimators.get("sticking-the-landing").gradient(problem, problem.parameters, eps)
        assert abs(float(got.phi["loc"])) < 1e-12
        assert abs(float(got.phi["log_scale"])) < 1e-12


def test_doubly_reparameterised_is_sticking_the_landing_at_one_sample():
    problem = PROBLEMS["rainforth"]
    noise = torch.randn(1, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    one = estimators.get("dreg", num_samples=1).gradient(problem, problem.parameters, noise)
    other = estimators.get("sticking-the-landing", num_samples=1).gradient(problem, problem.parameters, noise)
    agrees(one.phi, other.phi)


def test_sumo_without_weights_telescopes_to_the_longest_prefix():
    """With every survival probability one, what remains of the sum is its last term."""
    log_w = torch.randn(7, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))

    class Certain(estimators.SUMO):
        def survival(self, k):
            return torch.ones_like(k, dtype=torch.float64)

    torch.testing.assert_close(Certain().value(log_w), log_mean_exp(log_w))
    torch.testing.assert_close(Certain().weights(log_w).model, log_w.softmax(0))


def test_a_model_weight_of_zero_does_not_lose_the_path():
    """Weights that underflow: the ratio path / model is nudged, not lost, and theta gets nothing of it."""
    problem = PROBLEMS["gaussian-1d"]

    class PathAlone(estimators.StickingTheLanding):
        def weights(self, log_w):
            zero = torch.zeros_like(log_w)
            return estimators.Weights(zero + 1 / self.num_samples, zero, zero)

    noise = torch.randn(K, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    got = PathAlone(num_samples=K).gradient(problem, problem.parameters, noise)
    whole = estimators.get("sticking-the-landing", num_samples=K).gradient(problem, problem.parameters, noise)
    agrees(got.phi, whole.phi)
    assert float(got.theta["prior_loc"].abs()) < 1e-100


def test_a_plain_tuple_with_numbers_and_none_will_do():
    problem = PROBLEMS["gaussian-1d"]

    class Bare(estimators.StickingTheLanding):
        def weights(self, log_w):
            return 1 / self.num_samples, 0, None

    noise = torch.randn(K, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    got = Bare(num_samples=K).gradient(problem, problem.parameters, noise)
    assert float(got.theta["prior_loc"]) == 0.0
    agrees(
        got.phi, estimators.get("sticking-the-landing", num_samples=K).gradient(problem, problem.parameters, noise).phi
    )


def test_guide_against_torch_distributions():
    loc = torch.randn(3, 2, dtype=torch.float64)
    log_scale = torch.randn(3, 2, dtype=torch.float64)
    q = DiagonalGaussian(loc, log_scale)
    z = torch.randn(5, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(z), log_normal(z, loc, log_scale))
    p = DiagonalGaussian(loc + 1, log_scale - 0.5)
    normal = torch.distributions.Normal
    kl = torch.distributions.kl_divergence(normal(q.loc, q.scale), normal(p.loc, p.scale)).sum(-1)
    torch.testing.assert_close(q.kl(p), kl)


def test_a_changed_total_derivative_is_none_any_more():
    """Its score is then used as it stands, not taken for minus the path."""
    problem = PROBLEMS["gaussian-1d"]
    noise = torch.randn(K, 1, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    class Changed(estimators.IWAE):
        def weights(self, log_w):
            return super().weights(log_w)._replace(score=None)

    got = Changed(num_samples=K).gradient(problem, problem.parameters, noise)
    agrees(got.phi, estimators.get("iwae-stl", num_samples=K).gradient(problem, problem.parameters, noise).phi)


def test_total_derivative_is_the_plain_weights_it_says():
    problem = PROBLEMS["linear-gaussian"]
    noise = torch.randn(K, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))

    class Plain(estimators.IWAE):
        def weights(self, log_w):
            return tuple(super().weights(log_w))

    plain = Plain(num_samples=K).gradient(problem, problem.parameters, noise)
    agrees(estimators.get("iwae", num_samples=K).gradient(problem, problem.parameters, noise).phi, plain.phi)


@pytest.mark.parametrize("name", ["vimco", "ovis", "jackknife"])
def test_leave_one_out_rules_survive_a_dominating_weight_in_single_precision(name):
    """Known-bad 16: 1 - w~ is 0 in float32 here, and its logarithm must not be taken."""
    log_w = torch.tensor([0.0, -40.0, -41.0, -43.0], dtype=torch.float64)
    exact = estimators.get(name, num_samples=K).weights(log_w)
    single = estimators.get(name, num_samples=K).weights(log_w.float())
    for ours, theirs in zip(single, exact, strict=True):
        if theirs is not None:
            torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_jackknife_of_any_order_against_its_subsets(order):
    """Bounds over all subsets, one by one."""
    log_w = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    estimator = estimators.Jackknife(num_samples=5, order=order)
    total = torch.zeros(2, dtype=torch.float64)
    for j, coefficient in enumerate(estimator.coefficients()):
        bounds = [log_mean_exp(log_w[list(kept)]) for kept in itertools.combinations(range(5), 5 - j)]
        total = total + coefficient * torch.stack(bounds).mean(0)
    torch.testing.assert_close(estimator.value(log_w), total)
    ours = log_w.clone().requires_grad_()
    (slope,) = torch.autograd.grad(estimator.value(ours).sum(), ours)
    torch.testing.assert_close(estimator.weights(log_w).model, slope)


@pytest.mark.parametrize(
    ("num_samples", "order", "part"), [(2, 2, "num_samples > 2"), (4, 0, "order"), (99, 4, "20000")]
)
def test_jackknife_settings_that_cannot_be(num_samples, order, part):
    with pytest.raises(estimators.Refusal, match=part):
        estimators.Jackknife(num_samples=num_samples, order=order)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_path_weights_survive_where_model_weights_underflow(dtype):
    """PIWAE's groups weigh what the whole does not: w~ is denormal or zero for one of them, half for its own group."""
    problem = Gaussian1D(loc=0.0, scale=1.0, x=0.0, prior_loc=0.0, dtype=dtype)
    for far in (9.0, 13.0, 13.5, 14.0, 20.0, 38.0, 60.0):  # w~ from 1e-18 down to below the smallest double
        noise = torch.tensor([0.1, -0.2, far, far], dtype=torch.float64).reshape(4, 1, 1)
        got = estimators.PIWAE(num_samples=4).gradient(problem, problem.parameters, noise.to(problem.data.dtype))
        p = leaves(Gaussian1D(loc=0.0, scale=1.0, x=0.0, prior_loc=0.0))
        log_p, log_q, z = parts(problem, p, noise)
        log_w = log_p(z) - log_q(z)
        phi = 0.5 * (log_mean_exp(log_w[:2]) + log_mean_exp(log_w[2:])).mean()
        expected = torch.autograd.grad(phi, list(p["phi"].values()))
        for leaf, truth in zip(got.phi.values(), expected, strict=True):
            torch.testing.assert_close(leaf.double(), truth, rtol=1e-4 if dtype == "float32" else 1e-9, atol=1e-6)
