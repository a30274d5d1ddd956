"""Full-rank, mixture and flow guides: densities that integrate to one, and that say of their own draws what they should."""

from __future__ import annotations

import importlib.util
import math
import sys

import pytest
import torch
from torch.func import grad, jacrev, vmap

import estimators
from benchmarks.problems import RichGuideVAE, rich_guides
from benchmarks.problems.rich_guides import Guided
from benchmarks.specs import SpecError
from estimators import DiagonalGaussian

needs_zuko = pytest.mark.skipif(importlib.util.find_spec("zuko") is None, reason="needs zuko")
GUIDES = ["full-rank", "mixture", pytest.param("flow", marks=needs_zuko)]
X = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 1.0]], dtype=torch.float64)


def model_of(family, latent=2, moved=0.4, seed=0):
    g = torch.Generator().manual_seed(seed)
    sizes = Guided(family, hidden=5, latent=latent)
    start = sizes.start(X.mean(0), g)
    parameters = {
        block: {n: leaf + moved * torch.randn(leaf.shape, generator=g, dtype=leaf.dtype) for n, leaf in b.items()}
        for block, b in start.items()
    }
    return sizes.model_of(X), parameters


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("family", GUIDES)
def test_densities_integrate_to_one_and_draws_follow_them(family, seed):
    """By a sum over a plane of two latents; first and second moments of 20,000 draws within 4.5 standard errors."""
    model, parameters = model_of(family, moved=0.25, seed=seed)
    q = model.guide(parameters["phi"])
    z = q.transform(q.noise((20_000,), torch.Generator().manual_seed(0)))
    unit = torch.linspace(-14, 14, 281, dtype=torch.float64)  # a flow has long tails
    plane = z.mean(0) + z.std(0) * torch.cartesian_prod(unit, unit)[:, None]
    cell = z.std(0).prod(-1) * float(unit[1] - unit[0]) ** 2
    weight = q.log_prob(plane).exp() * cell
    torch.testing.assert_close(weight.sum(0), torch.ones(2).double(), rtol=1e-4, atol=0)
    for i, j in ((0, None), (1, None), (0, 0), (0, 1), (1, 1)):
        drawn = z[..., i] if j is None else z[..., i] * z[..., j]
        values = plane[..., i] if j is None else plane[..., i] * plane[..., j]
        exact = (weight * values).sum(0)
        assert bool(((drawn.mean(0) - exact).abs() < 4.5 * drawn.std(0) / math.sqrt(20_000)).all())


@pytest.mark.parametrize("family", ["full-rank", pytest.param("flow", marks=needs_zuko)])
def test_the_way_there_and_back(family):
    """inverse undoes transform, and log q of a draw is the base density over the Jacobian's determinant, by autograd."""
    model, parameters = model_of(family, latent=5)
    q = model.guide(parameters["phi"])
    noise = q.noise((4,), torch.Generator().manual_seed(1))
    z = q.transform(noise)
    torch.testing.assert_close(q.inverse(z), noise)
    torch.testing.assert_close(q.log_prob(z), q.log_prob_transformed(noise))
    jacobian = jacrev(lambda n: q.transform(n[None].expand(2, 5))[1])(noise[2, 1])
    base = -0.5 * noise[2, 1].square().sum() - 2.5 * math.log(2 * math.pi)
    torch.testing.assert_close(q.log_prob(z)[2, 1], base - torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize("family", GUIDES)
def test_a_held_density_moves_with_z_alone(family):
    model, parameters = model_of(family)
    z = torch.ones(2, 2, dtype=torch.float64)
    slopes = grad(lambda phi: model.guide(phi).detach().log_prob(z).sum())(parameters["phi"])
    assert not any(bool(slope.any()) for slope in slopes.values())
    free = grad(lambda phi: model.guide(phi).log_prob(z).sum())(parameters["phi"])
    assert all(bool(slope.any()) for slope in free.values())
    along = [
        grad(lambda z, q=q: q.log_prob(z).sum())(z)
        for q in (model.guide(parameters["phi"]), model.guide(parameters["phi"]).detach())
    ]
    torch.testing.assert_close(*along)


@pytest.mark.parametrize("family", GUIDES)
def test_pathwise_and_score_gradients_have_one_expectation(family):
    """Two estimators that share nothing but the model: 4.5 standard errors in each of at most 60 random directions."""
    model, parameters = model_of(family, moved=0.2)
    g = torch.Generator().manual_seed(3)
    found = []
    for name, rows in (("sticking-the-landing", 1000), ("leave-one-out", 4000)):
        estimator = estimators.get(name, num_samples=8)
        (draw,) = estimator.draws(model.guide(parameters["phi"]), rows, g)
        one = vmap(lambda n, e=estimator: e.gradient(model, parameters, n).phi, chunk_size=1000)(draw.noise)
        flat = torch.cat([leaf.reshape(rows, -1) for leaf in one.values()], 1)
        found.append(flat @ torch.randn(flat.shape[1], 60, generator=torch.Generator().manual_seed(4)).double())
    path, score = found
    error = (path.var(0) / len(path) + score.var(0) / len(score)).sqrt()
    assert float(((path.mean(0) - score.mean(0)) / error).abs().max()) < 4.5
    assert float((path.mean(0) / error).abs().max()) > 8  # there is something to find


@pytest.mark.parametrize("family", ["full-rank", pytest.param("flow", marks=needs_zuko)])
def test_it_starts_as_a_diagonal_gaussian(family):
    model, parameters = model_of(family, latent=4, moved=0.0)
    q = model.guide(parameters["phi"])
    plain = DiagonalGaussian(q.loc, q.log_scale) if family == "full-rank" else q.base
    z = torch.randn(6, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(q.log_prob(z), plain.log_prob(z))


def test_without_zuko_a_flow_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "zuko", None)
    with pytest.raises(SpecError, match=r"rich-guide-vae: a flow needs zuko: python -m pip install 'gradest\[flows\]'"):
        RichGuideVAE(family="flow")
    RichGuideVAE(family="mixture", latent=2, hidden=3, checkpoint="start", points=1)


@needs_zuko
def test_building_a_flow_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    rich_guides.architecture.cache_clear()
    model_of("flow")
    assert torch.equal(before, torch.get_rng_state())
