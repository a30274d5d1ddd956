"""Families of trained models: densities against written-out ones, sums over all images, and that each trains."""

from __future__ import annotations

import itertools
import math
from importlib.util import find_spec

import pytest
import torch
from scipy import stats
from torch import distributions as td
from torch.func import jacrev, vmap
from torch.nn.functional import linear

import estimators
from benchmarks import data, training
from benchmarks.problems import BeliefNetVAE, HierarchicalVAE, PixelVAE, RichGuideVAE
from benchmarks.problems import pixel_vae as pixels
from benchmarks.problems.belief_net_vae import BernoulliLatents
from benchmarks.problems.hierarchical_vae import Layered
from benchmarks.problems.pixel_vae import Autoregressive
from benchmarks.problems.rich_guides import Guided
from benchmarks.problems.vae import OneLayer
from benchmarks.specs import SpecError
from estimators.replicates import stacked, warmed_up

HIERARCHICAL = {"latents": "4-3-2", "hidden": "6-5-4"}
TINY = {
    HierarchicalVAE: HIERARCHICAL,
    BeliefNetVAE: {"latent": 6, "hidden": 5},
    PixelVAE: {"latent": 2, "hidden": 4, "channels": 2, "layers": 1},
    RichGuideVAE: {"latent": 3, "hidden": 5},
}
FAMILIES = [
    OneLayer(hidden=4, latent=2),
    Layered(**HIERARCHICAL),
    BernoulliLatents(latent=3, hidden=0),
    BernoulliLatents(latent=3, hidden=2),
    Autoregressive(latent=2, hidden=4, channels=3, layers=2),
    Guided("full-rank", hidden=4, latent=3),
    Guided("mixture", hidden=4, latent=3),
    pytest.param(
        Guided("flow", hidden=4, latent=3), marks=pytest.mark.skipif(find_spec("zuko") is None, reason="needs zuko")
    ),
]
SLOW = ("lax", "score-coefficient", "network-baseline")


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(data.CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        patch.setattr(training, "CURVE_POINTS", 1)
        patch.setattr(training, "IWAE_SAMPLES", 2)
        yield


def moved(family, size, seed=0):
    """Parameters away from the start, where some are zero; float64."""
    g = torch.Generator().manual_seed(seed)
    start = family.start(torch.full((size,), 0.4, dtype=torch.float64), g)
    return {
        block: {name: leaf + 0.5 * torch.randn(leaf.shape, generator=g, dtype=leaf.dtype) for name, leaf in b.items()}
        for block, b in start.items()
    }


def all_images(size):
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=size)), dtype=torch.float64)


def network(block, prefix, given, *heads):
    features = given
    for layer in ("first", "second"):
        features = torch.tanh(linear(features, block[f"{prefix}.{layer}.weight"], block[f"{prefix}.{layer}.bias"]))
    return [linear(features, block[f"{prefix}.{head}.weight"], block[f"{prefix}.{head}.bias"]) for head in heads]


def gaussian(block, prefix, given):
    loc, log_scale = network(block, prefix, given, "loc", "log_scale")
    return td.Normal(loc, log_scale.exp())


@pytest.mark.parametrize("shape", [(), (5,)])
def test_three_layers_are_the_written_out_chain(shape):
    """Guide from x up, prior from the top down, each by networks of its own."""
    family = Layered(**HIERARCHICAL)
    x = all_images(3)[2:5]
    parameters = moved(family, 3)
    theta, phi = parameters["theta"], parameters["phi"]
    model = family.model_of(x)
    q = model.guide(phi)
    z = q.transform(q.noise(shape, torch.Generator().manual_seed(1)))
    assert [leaf.shape for leaf in z] == [(*shape, 3, 4), (*shape, 3, 3), (*shape, 3, 2)]
    up = [gaussian(phi, "z1", x), gaussian(phi, "z2", z[0]), gaussian(phi, "z3", z[1])]
    torch.testing.assert_close(q.log_prob(z), sum(d.log_prob(leaf).sum(-1) for d, leaf in zip(up, z, strict=True)))
    down = [gaussian(theta, "z1", z[1]), gaussian(theta, "z2", z[2]), td.Normal(torch.zeros(2).double(), 1.0)]
    prior = sum(d.log_prob(leaf).sum(-1) for d, leaf in zip(down, z, strict=True))
    (logits,) = network(theta, "x", z[0], "logits")
    likelihood = td.Bernoulli(logits=logits).log_prob(x).sum(-1)
    torch.testing.assert_close(model.log_joint(theta, z), prior + likelihood)
    torch.testing.assert_close(model.prior(theta).log_prob(z) + model.log_likelihood(theta, z), prior + likelihood)


def test_burdas_two_layers_have_his_sizes():
    family = Layered()
    start = family.start(torch.zeros(784), torch.Generator().manual_seed(0))
    shapes = {f"{b}.{n}": tuple(v.shape) for b, leaves in start.items() for n, v in leaves.items() if "weight" in n}
    assert shapes == {
        "theta.x.first.weight": (200, 100), "theta.x.second.weight": (200, 200), "theta.x.logits.weight": (784, 200),
        "theta.z1.first.weight": (100, 50), "theta.z1.second.weight": (100, 100),
        "theta.z1.loc.weight": (100, 100), "theta.z1.log_scale.weight": (100, 100),
        "phi.z1.first.weight": (200, 784), "phi.z1.second.weight": (200, 200),
        "phi.z1.loc.weight": (100, 200), "phi.z1.log_scale.weight": (100, 200),
        "phi.z2.first.weight": (100, 100), "phi.z2.second.weight": (100, 100),
        "phi.z2.loc.weight": (50, 100), "phi.z2.log_scale.weight": (50, 100),
    }  # fmt: skip


@pytest.mark.parametrize("hidden", [0, 2])
def test_a_belief_net_sums_to_one(hidden):
    """Over all images and latents p is one, and q over all latents; at the start every image has the mean's odds."""
    family = BernoulliLatents(latent=3, hidden=hidden)
    x, states = all_images(4), all_images(3)
    parameters = moved(family, 4)
    model = family.model_of(x)
    z = states[:, None].expand(8, 16, 3)
    total = model.log_joint(parameters["theta"], z).flatten().logsumexp(0)
    torch.testing.assert_close(total, torch.zeros_like(total))
    torch.testing.assert_close(model.guide(parameters["phi"]).log_prob(z).logsumexp(0), torch.zeros(16).double())
    first = model.log_joint(parameters["theta"], z[5])
    assert float(first.std()) > 0.1  # data matter


def test_a_belief_net_dreams_of_its_own_data():
    """Sleep-phi's mean is sum_{x, z} p(x, z) grad log q(z | x): 4.5 standard errors in each coordinate of 20,000 dreams."""
    family = BernoulliLatents(latent=2)
    parameters = moved(family, 3)
    estimator = estimators.get("sleep-phi", num_samples=2)
    (draw,) = estimator.draws(family.model_of(all_images(3)[:1]).guide(parameters["phi"]), 20_000, torch.Generator())
    model = family.model_of(all_images(3)[:1])
    found = vmap(lambda noise: estimator.gradient(model, parameters, noise).phi)(draw.noise)
    every = family.model_of(all_images(3))
    z = all_images(2)[:, None].expand(4, 8, 2)
    joint = every.log_joint(parameters["theta"], z).exp()
    exact = torch.func.grad(lambda phi: (joint * every.guide(phi).log_prob(z)).sum())(parameters["phi"])
    for name, rows in found.items():
        error = rows.std(0) / math.sqrt(len(rows))
        assert bool(((rows.mean(0) - exact[name]).abs() < 4.5 * error).all())
        assert float((exact[name] / error).abs().max()) > 10


@pytest.mark.parametrize(("size", "seed"), [(4, 0), (9, 0), (9, 1)])
def test_an_autoregressive_decoder_sums_to_one_over_all_images(size, seed):
    """At every z; a decoder that sees the pixel it predicts does not."""
    family = Autoregressive(latent=2, hidden=4, channels=3, layers=2)
    x = all_images(size)
    theta = moved(family, size, seed)["theta"]
    model = family.model_of(x)
    z = torch.randn(5, 1, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64).expand(5, len(x), 2)
    found = model.log_likelihood(theta, z).logsumexp(-1)
    torch.testing.assert_close(found, torch.zeros(5).double(), rtol=0, atol=1e-12)
    assert float(model.log_likelihood(theta, z).std(0).min()) > 1e-3  # z is heard


def test_the_sum_finds_a_decoder_that_sees_too_much(monkeypatch):
    family = Autoregressive(latent=2, hidden=4, channels=3, layers=1)
    theta, x = moved(family, 4)["theta"], all_images(4)
    z = torch.zeros(16, 2, dtype=torch.float64)
    masked = pixels._masked
    monkeypatch.setattr(pixels, "_masked", lambda layer, given, centre: masked(layer, given, centre=True))
    assert abs(float(family.model_of(x).log_likelihood(theta, z).logsumexp(0))) > 0.01


def test_each_pixel_hears_all_before_it_and_none_after():
    family = Autoregressive(latent=2, hidden=4, channels=3, layers=2)
    theta = moved(family, 9)["theta"]
    _, decoder = pixels.architecture(9, 2, 4, 3, 2)
    z = torch.ones(2, dtype=torch.float64)
    slope = jacrev(lambda x: torch.func.functional_call(decoder, theta, (z, x)))(torch.full((9,), 0.3).double())
    assert not bool(slope.triu().any())
    assert bool((slope.tril(-1).abs() > 0)[torch.tril(torch.ones(9, 9), -1).bool()].all())


def test_drawn_images_have_the_decoders_frequencies():
    """A chi-square test over the 16 images of 2 x 2 pixels: false alarm 1e-6."""
    family = Autoregressive(latent=2, hidden=4, channels=3, layers=1)
    theta, x = moved(family, 4)["theta"], all_images(4)
    z = torch.tensor([0.5, -1.0], dtype=torch.float64)
    drawn = family.images(theta, z.expand(20_000, 2), torch.Generator().manual_seed(3))
    counts = torch.bincount((drawn @ torch.tensor([8.0, 4.0, 2.0, 1.0]).double()).long(), minlength=16)
    expected = 20_000 * family.model_of(x).log_likelihood(theta, z.expand(16, 2)).exp()
    assert stats.chisquare(counts.numpy(), expected.numpy(), sum_check=False).pvalue > 1e-6
    uniform = torch.full((16,), 1250.0)
    assert stats.chisquare(counts.numpy(), uniform.numpy()).pvalue < 1e-12


@pytest.mark.parametrize("family", FAMILIES, ids=repr)
def test_what_every_family_gives(family):
    """Finite values of the model's shapes, gradients under vmap equal to one by one, and images and latents of its own."""
    x = all_images(4)[3:6]
    parameters = moved(family, 4)
    model = family.model_of(x)
    torch.testing.assert_close(model.data, x)
    g = torch.Generator().manual_seed(0)
    name = "leave-one-out" if isinstance(family, BernoulliLatents) else "dreg"
    estimator = estimators.get(name, num_samples=3)
    (draws,) = estimator.draws(model.guide(parameters["phi"]), 2, g)
    together = vmap(lambda noise: estimator.gradient(model, parameters, noise))(draws.noise)
    for row in range(2):
        noise = torch.utils._pytree.tree_map(lambda leaf, row=row: leaf[row], draws.noise)
        alone = estimator.gradient(model, parameters, noise)
        for block in ("theta", "phi"):
            for leaf, slope in getattr(alone, block).items():
                torch.testing.assert_close(getattr(together, block)[leaf][row], slope)
                if slope.ndim > 1:
                    assert float(slope.abs().max()) > 0, leaf  # no weight is without use
    z, images = family.generate(parameters["theta"], 7, g)
    assert images.shape == (7, 4) and set(images.unique().tolist()) <= {0.0, 1.0}
    assert model.log_joint(parameters["theta"], torch.utils._pytree.tree_map(lambda leaf: leaf[:3], z)).shape == (3,)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        pytest.param(kind, name, marks=pytest.mark.long if kind is HierarchicalVAE and name in SLOW else ())
        for kind in (HierarchicalVAE, BeliefNetVAE)
        for name in estimators.names()
    ],
)
def test_every_estimator_runs_or_says_why_not(kind, name):
    problem = kind(**TINY[kind], checkpoint="start", points=2)
    estimator = estimators.get(name, num_samples=estimators.REGISTRY[name].usual_num_samples())
    reason = estimator.refuses(problem)
    if reason is not None:
        assert any(need in reason for need in estimator.needs - problem.offers)
        return
    estimator = warmed_up(estimator, problem, problem.parameters, torch.Generator().manual_seed(1))
    rows = stacked(estimator, problem, problem.parameters, 3, torch.Generator().manual_seed(0))
    assert rows.dtype == torch.float32 and bool(rows[:, 1:].isfinite().all()) and float(rows[0].norm()) > 0


@pytest.mark.parametrize("kind", TINY)
def test_each_is_trained_and_frozen(kind):
    """One pass over the digits raises the held-out ELBO, at common noise; the untrained checkpoint is its start."""
    settings = {"epochs": 1, "batch": 100, "learning_rate": 0.01, "points": 3}
    problem = kind(**TINY[kind], **settings)
    assert problem.data.shape == (3, 784)
    record = problem.training_record()
    first, *_, last = record.points
    assert first.heldout_elbo + 2 < last.heldout_elbo < 0
    assert set(TINY[kind]) <= set(record.settings) and record.problem.startswith(kind.name + "[")
    start = kind(**TINY[kind], **settings, checkpoint="start")
    assert start.training_id == problem.training_id
    kept = training.load(problem.training_file, problem.training_id, start.parameters)[1]["start"]
    for block, leaves in start.parameters.items():
        assert all(torch.equal(leaf, kept[block][name]) for name, leaf in leaves.items())


def test_a_baseline_by_a_network_of_the_data_trains_a_vae():
    """It asks the model of a minibatch for its images."""
    family = BernoulliLatents(latent=3)
    grey = torch.rand(40, 9, generator=torch.Generator().manual_seed(0))
    schedule = training.Schedule(epochs=2, batch=10, learning_rate=0.01, seed=0)
    estimator = estimators.get("network-baseline", num_samples=2)
    for each in (family, OneLayer(hidden=3, latent=2)):
        start = each.start(grey.mean(0), torch.Generator().manual_seed(1))
        trained = training.train(
            each.model_of, estimator, start, grey, training.binarize(grey, torch.Generator()), schedule
        )
        assert math.isfinite(trained.points[-1].heldout_elbo)


@pytest.mark.parametrize(
    ("kind", "settings", "words"),
    [
        (HierarchicalVAE, {"latents": "100"}, "hierarchical-vae: latents and hidden must name as many layers, not 1"),
        (HierarchicalVAE, {"latents": "100-0"}, "hierarchical-vae: latents must be whole numbers above 0"),
        (HierarchicalVAE, {"hidden": "200,x"}, "hierarchical-vae: hidden must be whole numbers above 0"),
        (BeliefNetVAE, {"hidden": -1}, "belief-net-vae: hidden must be at least 0"),
        (BeliefNetVAE, {"latent": 0}, "belief-net-vae: latent must be at least 1"),
        (BeliefNetVAE, {"objective": "vimco", "train_num_samples": 1}, "belief-net-vae: vimco needs num_samples >= 2"),
        (PixelVAE, {"channels": 0}, "pixel-vae: channels must be at least 1"),
        (RichGuideVAE, {"family": "full-rnak"}, "rich-guide-vae: no guide 'full-rnak'; did you mean 'full-rank'"),
        (RichGuideVAE, {"family": "flow", "latent": 1}, "rich-guide-vae: a flow needs at least 2 latents"),
    ],
)
def test_bad_settings_are_refused_in_one_line(kind, settings, words):
    with pytest.raises(SpecError) as caught:
        kind(**settings)
    assert str(caught.value).startswith(words) and "\n" not in str(caught.value)
