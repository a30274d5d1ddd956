"""Training by pairs of estimators: what each block's gradient is, which targets are refused, and that steps are Adam's."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import grad, vmap

import estimators
from benchmarks import data as digits_data
from benchmarks.images import Images
from benchmarks.problems import LinearGaussian
from benchmarks.registry import Registry
from benchmarks.specs import SpecError
from benchmarks.streams import generator
from benchmarks.trainer import FAMILIES, Pair, Session, Settings, compiling, family, read
from benchmarks.trainer.settings import Optimizer
from benchmarks.trainer.tempering import Tempered, tempered
from benchmarks.training import TrainingError
from estimators import Refusal

PROBLEM = LinearGaussian(dim=2, data_dim=3, points=4, seed=1)


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv(digits_data.CACHE_VARIABLE, str(tmp_path_factory.getbasetemp() / "cache"))


def pictures(count=60, seed=0):
    """Grey images of four by four pixels: stripes, upright or lying, of random shade."""
    rng = np.random.default_rng(seed)
    upright = rng.random(count) < 0.5
    stripes = np.where(upright[:, None, None], np.arange(4) % 2, (np.arange(4) % 2)[:, None])
    grey = torch.tensor((0.1 + 0.8 * stripes * rng.random((count, 1, 1))).reshape(count, 16), dtype=torch.float32)
    return Images(grey, (grey[:20] > 0.5).float(), 4)


def settings(**objective):
    return Settings.model_validate(
        {
            "model": "vae[hidden=8,latent=2]",
            "data": {"batch": 20},
            "objective": objective,
            "optimizer": {"epochs": 4, "learning_rate": 0.01},
            "watch": {"points": 2, "images": 10, "num_samples": 4},
        }
    )


def pair(theta, phi=None, *, num_samples=3, phi_num_samples=None, shared=False):
    first = estimators.get(theta, num_samples=num_samples)
    second = first if phi is None else estimators.get(phi, num_samples=phi_num_samples or num_samples)
    return Pair(first, second, shared)


def noise_of(one, seed=0, problem=PROBLEM):
    streams = {name: torch.Generator().manual_seed(seed + i) for i, name in enumerate(("theta", "phi"))}
    return one.draw(problem.guide(problem.parameters["phi"]), streams)


def assert_blocks(found, theta, phi):
    for name, leaf in theta.theta.items():
        torch.testing.assert_close(found.theta[name], leaf)
    for name, leaf in phi.phi.items():
        torch.testing.assert_close(found.phi[name], leaf)
    torch.testing.assert_close(found.value, theta.value, equal_nan=True)


@pytest.mark.parametrize(
    ("theta", "phi"),
    [
        ("iwae", "dreg"),
        ("iwae", "reparameterization"),
        ("reparameterization", "iwae"),
        ("dreg", "vimco"),
        ("vimco", "dreg"),
    ],
)
def test_one_pass_gives_each_block_its_own_estimate(theta, phi):
    one = pair(theta, phi)
    noise = noise_of(one)
    assert one.one_pass and set(noise) == {"theta"}
    assert_blocks(
        one.gradient(PROBLEM, PROBLEM.parameters, noise),
        one.theta.gradient(PROBLEM, PROBLEM.parameters, noise["theta"]),
        one.phi.gradient(PROBLEM, PROBLEM.parameters, noise["theta"]),
    )


@pytest.mark.parametrize(
    ("theta", "phi", "K"), [("iwae", "dreg", 5), ("iwae", "bonnet-price", 3), ("sumo", "dreg", 3), ("iwae", "sumo", 3)]
)
def test_two_passes_at_samples_of_their_own(theta, phi, K):
    one = pair(theta, phi, phi_num_samples=K)
    noise = noise_of(one)
    assert not one.one_pass and set(noise) == {"theta", "phi"}
    assert_blocks(
        one.gradient(PROBLEM, PROBLEM.parameters, noise),
        one.theta.gradient(PROBLEM, PROBLEM.parameters, noise["theta"]),
        one.phi.gradient(PROBLEM, PROBLEM.parameters, noise["phi"]),
    )


@pytest.mark.parametrize("theta", ["sumo", "multilevel-russian-roulette"])
def test_shared_samples_are_as_many_as_theta_drew(theta):
    one = pair(theta, "iwae", num_samples=1, shared=True)
    lengths = set()
    for seed in range(8):
        noise = noise_of(one, seed)
        K = len(noise["theta"])
        lengths.add(K)
        assert_blocks(
            one.gradient(PROBLEM, PROBLEM.parameters, noise),
            one.theta.gradient(PROBLEM, PROBLEM.parameters, noise["theta"]),
            estimators.get("iwae", num_samples=K).gradient(PROBLEM, PROBLEM.parameters, noise["theta"]),
        )
    assert len(lengths) > 1


def test_pairs_that_make_no_sense_are_refused():
    blind = type("Blind", (estimators.IWAE,), {"targets": {"theta": None, "phi": None}})
    with pytest.raises(Refusal, match="iwae estimates nothing for theta"):
        Pair(blind(num_samples=2), blind(num_samples=2))
    with pytest.raises(Refusal, match="cannot use the samples"):
        pair("iwae", "bonnet-price", shared=True)
    images = pictures()
    for objective, said in (
        ({"theta": "vimco", "phi": "measure-valued", "free_bits": 0.1}, "estimates iwae-5 for theta"),
        ({"theta": "iwae", "free_bits": 0.1}, "estimates iwae-5 for theta"),
        ({"theta": "reparameterization", "phi": "dreg", "warm_up_epochs": 1}, "dreg estimates iwae-5 for phi"),
        ({"theta": "reparameterization-analytic-kl", "warm_up_epochs": 1}, "closed form"),
        ({"theta": "iwae", "kl_weight": 4}, "estimates iwae-5 for theta"),
    ):
        with pytest.raises(Refusal, match=said):
            Session(settings(**objective), images)
    with pytest.raises(SpecError, match="did you mean 'iwae'"):
        Session(settings(theta="iwea"), images)
    with pytest.raises(SpecError, match="vae"):
        family("vea")


def closed_form(problem, parameters, beta, free):
    """E_q log p(x|z) - sum_d beta max(free, KL_d), mean over points (KL_d too), written out for N(A z + b, s^2 I)."""
    theta, phi = parameters["theta"], parameters["phi"]
    loc, variance = phi["loc"], (2 * phi["log_scale"]).exp()
    noise = (2 * theta["log_noise_scale"]).exp()
    residual = problem.data - loc @ theta["weight"].T - theta["bias"]
    spread = (variance * theta["weight"].square().sum(0)).sum(-1)
    size = problem.data.shape[-1]
    likelihood = -0.5 * ((residual.square().sum(-1) + spread) / noise + size * torch.log(2 * math.pi * noise))
    prior = theta.get("prior_loc", torch.zeros(()))
    kl = (0.5 * (variance + (loc - prior).square() - 1) - phi["log_scale"]).mean(0)
    return likelihood.mean() - beta * torch.maximum(kl, torch.tensor(free, dtype=kl.dtype)).sum()


@pytest.mark.parametrize("name", ["reparameterization", "sticking-the-landing", "score-function", "bonnet-price"])
@pytest.mark.parametrize(("beta", "free"), [(0.3, 0.0), (0.0, 0.0), (4.0, 0.0), (1.0, "between"), (0.6, "between")])
def test_tempered_gradients_are_those_of_the_declared_target(name, beta, free):
    """All noise of one data point's two latents by Gauss-Hermite quadrature: exact for these polynomials, to rounding."""
    problem = LinearGaussian(dim=2, data_dim=3, points=1, seed=1, perturbation=0.4)
    parameters = problem.parameters
    guide = problem.guide(parameters["phi"])
    kl = (0.5 * ((2 * guide.log_scale).exp() + guide.loc.square() - 1) - guide.log_scale)[0]
    if free == "between":  # one latent on either side of what is free
        free = float(kl.mean())
    model = tempered(problem, parameters, beta, free)
    nodes, weights = np.polynomial.hermite_e.hermegauss(24)
    grid = torch.tensor(list(itertools.product(nodes, nodes))).reshape(-1, 1, 1, 2)
    probability = torch.tensor([a * b for a, b in itertools.product(weights, weights)]) / (2 * math.pi)
    estimator = estimators.get(name, num_samples=1)
    each = vmap(lambda noise: estimator.gradient(model, parameters, noise))(grid)
    exact = grad(lambda p: closed_form(problem, p, beta, free))(parameters)
    for block, found in (("theta", each.theta), ("phi", each.phi)):
        for leaf, slopes in found.items():
            torch.testing.assert_close(
                torch.tensordot(probability, slopes, 1), exact[block][leaf], rtol=1e-8, atol=1e-8
            )
    divergence = beta * torch.where(kl > free, kl, 0.0).sum()
    value = closed_form(problem, parameters, 0.0, 0.0) - divergence
    torch.testing.assert_close(torch.tensordot(probability, each.value, 1), value)


def test_nothing_asked_for_leaves_the_model_alone():
    assert tempered(PROBLEM, PROBLEM.parameters, 1.0, 0.0) is PROBLEM
    assert isinstance(tempered(PROBLEM, PROBLEM.parameters, 0.99, 0.0), Tempered)


def test_the_warm_up_is_declared_and_ends():
    session = Session(settings(theta="reparameterization", warm_up_epochs=2, free_bits=0.25), pictures())
    assert "beta" in session.targets()["phi"] and "0.25 nats" in session.targets()["theta"]
    found = []
    session.run(told=lambda seen: found.append(seen.warm_up))
    assert found[:6] == pytest.approx([1 / 6, 2 / 6, 3 / 6, 4 / 6, 5 / 6, 1.0]) and set(found[6:]) == {1.0}


def test_a_heavy_divergence_collapses_the_latents():
    """At 100 times its weight q becomes the prior; the same training without it keeps a nat or more."""
    kept = {}
    for weight in (1.0, 100.0):
        objective = {"theta": "reparameterization", "num_samples": 2, "kl_weight": weight}
        told = settings(**objective).model_copy(update={"optimizer": Optimizer(epochs=60, learning_rate=0.02)})
        session = Session(told, pictures())
        session.run()
        model = session.family.model_of(session.images.held_out)
        divergence = model.guide(session.parameters["phi"]).kl(model.prior(session.parameters["theta"]))
        kept[weight] = float(divergence.mean())
        assert ("its KL times 100" in session.targets()["phi"]) == (weight != 1)
    assert kept[100.0] < 0.02 and kept[1.0] > 0.5


def test_burdas_schedule_is_three_to_the_i_passes():
    burda = Optimizer(schedule="burda", learning_rate=1e-3)
    rates = [burda.rate(step, 2) for step in range(2 * burda.passes)]
    expected = [1e-3 * 10 ** (-i / 7) for i in range(8) for _ in range(2 * 3**i)]
    assert burda.passes == 3280 and rates == pytest.approx(expected)
    for name, K in (("burda", 50), ("sumo", 10)):
        found = read(Path(name), {})
        assert (found.optimizer.passes, found.data.batch, found.objective.num_samples) == (3280, 20, K)
        assert (found.optimizer.betas, found.optimizer.eps, found.model) == (
            (0.9, 0.999),
            1e-4,
            "vae[hidden=200,latent=50]",
        )


def test_settings_say_what_is_wrong_in_one_line(tmp_path):
    (tmp_path / "mine.toml").write_text("[optimizer]\nepoch = 3\n")
    with pytest.raises(SpecError, match=r"optimizer\.epoch"):
        read(tmp_path / "mine.toml", {})
    with pytest.raises(SpecError, match="did you mean 'burda'"):
        read(tmp_path / "burdo.toml", {})
    assert read(None, {"data.batch": 7}).data.batch == 7


@pytest.mark.parametrize(
    "changes", [{"data": 1, "data.batch": 2}, {"objective.num_samples": 10**23}, {"watch.num_samples": 10**23}]
)
def test_settings_that_no_training_has(changes):
    with pytest.raises(SpecError, match=r"no setting data\.batch: data is a value|less than or equal to 100000000"):
        read(None, changes)


def test_steps_are_adams_on_a_bound_written_out():
    """Three steps of IWAE-5 beside autograd and torch's Adam, on the documented streams."""
    images = pictures()
    session = Session(settings(theta="iwae"), images)
    p = {b: {k: v.clone().requires_grad_() for k, v in leaves.items()} for b, leaves in session.parameters.items()}
    leaves = [leaf for block in ("theta", "phi") for leaf in p[block].values()]
    adam = torch.optim.Adam(leaves, lr=0.01, betas=(0.9, 0.999), eps=1e-4)
    order = torch.randperm(60, generator=generator("cpu", "training", 0, "order"))
    pixels, noise = generator("cpu", "training", 0, "pixels"), generator("cpu", "training", 0, "theta")
    for step in range(3):
        x = torch.bernoulli(images.train[order[20 * step : 20 * step + 20]], generator=pixels)
        d, e = p["theta"], p["phi"]

        def layers(block, h):
            for name in ("first", "second"):
                h = torch.tanh(h @ block[f"{name}.weight"].T + block[f"{name}.bias"])
            return h

        h = layers(e, x)
        loc, log_scale = (h @ e[f"{name}.weight"].T + e[f"{name}.bias"] for name in ("loc", "log_scale"))
        q = torch.distributions.Normal(loc, log_scale.exp())
        z = loc + log_scale.exp() * torch.randn(5, 20, 2, generator=noise)
        logits = layers(d, z) @ d["logits.weight"].T + d["logits.bias"]
        log_p = torch.distributions.Bernoulli(logits=logits).log_prob(x).sum(-1)
        log_w = log_p + torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(-1) - q.log_prob(z).sum(-1)
        adam.zero_grad()
        (-(log_w.logsumexp(0) - math.log(5)).mean()).backward()
        adam.step()
    session.run(until=3)
    for block, kept in session.parameters.items():
        for name, leaf in kept.items():
            torch.testing.assert_close(leaf, p[block][name].detach(), rtol=1e-4, atol=1e-5)
    assert session.evaluations == 3 * 20 * 5


@pytest.mark.parametrize("name", estimators.names())
def test_every_estimator_trains_or_says_why_not(name):
    kind = estimators.REGISTRY[name]
    objective = {"theta": name, "num_samples": kind.usual_num_samples()}
    try:
        session = Session(settings(**objective), pictures())
    except Refusal as refusal:
        assert name in str(refusal)
        return
    start = [leaf.clone() for leaf in session.leaves]
    session.run(until=4)
    assert all(bool(leaf.isfinite().all()) for leaf in session.leaves)
    assert any(not torch.equal(leaf, first) for leaf, first in zip(session.leaves, start, strict=True))
    assert session.evaluations > 0


def test_training_raises_the_held_out_bound():
    longer = settings(theta="iwae", phi="dreg").model_copy(
        update={"optimizer": Optimizer(epochs=40, learning_rate=0.02)}
    )
    session = Session(longer, pictures())
    session.run()
    first, last = session.points[0], session.points[-1]
    assert last["heldout_bound"] - first["heldout_bound"] > 1.0
    assert (last["step"], last["epoch"], last["evaluations"]) == (120, 40.0, 120 * 20 * 5)


@pytest.mark.parametrize("name", ["sleep-phi", "insomnia"])
def test_wake_sleep_pairs_fit_q_to_the_models_own_draws(name):
    """phi's sleep gradient beside autograd on latents and pixels made by hand of the same noise."""
    gamma = {"sleep-phi": 0.0, "insomnia": 0.5}[name]
    session = Session(settings(theta="iwae", phi=name, num_samples=3), pictures())
    assert not session.pair.one_pass
    x = session.images.held_out[:6]
    model = session._model(x, 1.0)
    noise = session.pair.draw(model.guide(session.parameters["phi"]), session.streams)
    found = session.pair.gradient(model, session.parameters, noise)
    d = session.parameters["theta"]
    e = {k: v.clone().requires_grad_() for k, v in session.parameters["phi"].items()}
    eps, uniform = noise["phi"]["sleep"]
    assert eps.shape == (3, 6, 2) and uniform.shape == (3, 6, 16)
    h = torch.tanh(torch.tanh(eps @ d["first.weight"].T + d["first.bias"]) @ d["second.weight"].T + d["second.bias"])
    dreamt = (uniform < torch.sigmoid(h @ d["logits.weight"].T + d["logits.bias"])).float()

    def log_q(z, x):
        h = torch.tanh(torch.tanh(x @ e["first.weight"].T + e["first.bias"]) @ e["second.weight"].T + e["second.bias"])
        loc, log_scale = (h @ e[f"{part}.weight"].T + e[f"{part}.bias"] for part in ("loc", "log_scale"))
        return torch.distributions.Normal(loc, log_scale.exp()).log_prob(z).sum(-1)

    fit = (1 - gamma) * log_q(eps, dreamt).mean()
    if gamma:
        plain = session.family.model_of(x)
        z = plain.guide(session.parameters["phi"]).transform(noise["phi"]["wake"])
        log_w = plain.log_joint(d, z) - log_q(z, x).detach()
        fit = fit + gamma * (log_w.softmax(0) * log_q(z, x)).sum(0).mean()
    fit.backward()
    for leaf, slope in found.phi.items():
        torch.testing.assert_close(slope, e[leaf].grad, rtol=1e-4, atol=1e-5)
    with pytest.raises(Refusal, match="simulable"):
        Session(settings(theta=name).model_copy(update={"model": "pixel-vae[hidden=4,latent=2]"}), pictures())


def test_divergence_is_told_in_one_line():
    wild = settings(theta="iwae").model_copy(update={"optimizer": Optimizer(epochs=4, learning_rate=1e30)})
    with pytest.raises(TrainingError, match="lower the learning rate"):
        Session(wild, pictures()).run()


def test_a_clipped_gradient_is_no_longer_than_asked(monkeypatch):
    """With Adam's average of squares fed by the clipped gradient, its first moments tell: 0.1 g after one step."""
    clipped = settings(theta="iwae").model_copy(update={"optimizer": Optimizer(epochs=4, clip=0.5)})
    session = Session(clipped, pictures())
    session.run(until=1)
    for block in ("theta", "phi"):
        moments = [session.optimizer.state[leaf]["exp_avg"] for leaf in session.parameters[block].values()]
        assert float(torch.cat([m.reshape(-1) for m in moments]).norm()) == pytest.approx(0.1 * 0.5, rel=1e-4)


def test_a_compiler_that_fails_is_announced_and_done_without(monkeypatch):
    def broken(function, **how):
        def called(*args):
            raise RuntimeError("no compiler here\nand more")

        return called

    monkeypatch.setattr(compiling.torch, "compile", broken)
    quick, plain = (
        Session(settings(theta="iwae").model_copy(update={"compile": c}), pictures()) for c in (True, False)
    )
    assert quick.announced == ["not compiled, torch.compile failed: RuntimeError: no compiler here"]
    quick.run(until=3)
    plain.run(until=3)
    assert all(torch.equal(a, b) for a, b in zip(quick.leaves, plain.leaves, strict=True))


@pytest.mark.long
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's own, of its compiler
@pytest.mark.parametrize("model", ["vae[hidden=8,latent=2]", "belief-net-vae[hidden=8,latent=4]"])
def test_a_compiled_training_is_the_eager_one_to_rounding(model):
    objective = {"theta": "vimco"} if "belief" in model else {"theta": "iwae", "phi": "dreg"}
    both = [
        Session(settings(**objective).model_copy(update={"compile": c, "model": model}), pictures())
        for c in (True, False)
    ]
    assert both[0].announced == []
    for session in both:
        session.run(until=6)
    for ours, theirs in zip(both[0].leaves, both[1].leaves, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_families_start_from_their_seed_alone():
    mean = torch.full((16,), 0.3)
    for kind in FAMILIES.values():
        first, second = (kind().start(mean, torch.Generator().manual_seed(3)) for _ in range(2))
        assert all(torch.equal(first[b][k], second[b][k]) for b in first for k in first[b])
    assert Registry().estimator("iwae", 2).num_samples == 2
