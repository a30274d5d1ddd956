"""Discrete guides: the law of what they draw, exactly, their densities and the places where z jumps."""

from __future__ import annotations

import itertools

import pytest
import torch

from estimators import Bernoulli, Categorical
from estimators.discrete_guides import one_hot_like
from estimators.quadrature import gauss_legendre, product

LOGITS = torch.tensor([[0.3, -1.7, 2.5], [0.0, 4.0, -0.2]], dtype=torch.float64)
FACTORS = torch.tensor([[[0.3, -1.0, 2.0, 0.0], [1.0, 1.0, 1.0, 1.0]]], dtype=torch.float64)  # (1, 2, 4)
BOTH = [Bernoulli(LOGITS), Categorical(FACTORS)]


def kind(guide):
    return type(guide).__name__


@pytest.mark.parametrize("guide", BOTH, ids=kind)
def test_every_value_has_its_probability(guide):
    """The length of the cells of uniform noise on which each number of z is one, against log_prob and the closed form."""
    edges = guide.edges().flatten(1)  # (E, points * variables)
    probs = guide.probs if isinstance(guide, Bernoulli) else guide.logits.softmax(-1)
    shape = guide.noise((1,), torch.Generator()).shape[1:]
    for place, each in enumerate(itertools.product(*map(range, shape))):
        u, length = gauss_legendre(edges[:, place].tolist(), 1)
        noise = torch.full((len(u), *shape), 0.5, dtype=torch.float64)
        noise[(slice(None), *each)] = u
        share = torch.tensordot(length, guide.transform(noise)[(slice(None), *each)], 1)
        torch.testing.assert_close(share, probs[each], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("guide", [Bernoulli(LOGITS[0]), Categorical(FACTORS[0])], ids=kind)
def test_all_variables_together_have_the_law_of_log_prob(guide):
    """Independence: each state's share of the unit cube is exp log_prob of it, and states are all there, once each."""
    edges = guide.edges().flatten(1).T
    grid, weight = product([gauss_legendre(each.tolist(), 1) for each in edges])
    drawn = guide.transform(grid)
    states = guide.states()
    same = (drawn[:, None] == states).flatten(2).all(-1).double()
    assert bool((same.sum(1) == 1).all())
    torch.testing.assert_close(weight @ same, guide.log_prob(states).exp(), rtol=1e-12, atol=1e-15)
    assert float(guide.log_prob(states).exp().sum()) == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("guide", BOTH, ids=kind)
def test_densities_against_torch_distributions(guide):
    z = guide.transform(guide.noise((4, 5), torch.Generator().manual_seed(1)))
    theirs = torch.distributions.Bernoulli if isinstance(guide, Bernoulli) else torch.distributions.OneHotCategorical
    torch.testing.assert_close(guide.log_prob(z), theirs(logits=guide.logits).log_prob(z).sum(-1))
    assert guide.log_prob(z).shape == (4, 5, *guide.logits.shape[:1])


@pytest.mark.parametrize("guide", BOTH, ids=kind)
def test_z_jumps_nowhere_but_at_the_edges(guide):
    """... and the mirror images of the edges are among them, so that 1 - u may be transformed as well."""
    edges = guide.edges()
    torch.testing.assert_close(edges.sort(0).values, (1 - edges).sort(0).values, rtol=0, atol=1e-15)
    shape = edges.shape[1:]
    grid = torch.linspace(0, 1, 4002, dtype=torch.float64)[1:-1].reshape(-1, *[1] * len(shape)).expand(-1, *shape)
    z = guide.transform(grid)
    changes = (z[1:] != z[:-1]).reshape(len(grid) - 1, *shape, -1).any(-1)
    near = ((edges[:, None] >= grid[:-1]) & (edges[:, None] <= grid[1:])).any(0)
    assert bool((near | ~changes).all()) and bool(changes.any(0).all())


@pytest.mark.parametrize("guide", BOTH, ids=kind)
def test_noise_is_uniform_reproducible_and_of_the_guides_type(guide):
    noise = guide.noise((3, 2), torch.Generator().manual_seed(4))
    events = guide.logits.shape if isinstance(guide, Bernoulli) else guide.logits.shape[:-1]
    assert noise.shape == (3, 2, *events) and noise.dtype == torch.float64 and guide.noise_law == "uniform"
    assert torch.equal(noise, guide.noise((3, 2), torch.Generator().manual_seed(4)))
    assert bool(((noise >= 0) & (noise < 1)).all())
    single = type(guide)(guide.logits.float())
    assert single.noise((1,), torch.Generator()).dtype == single.transform(noise.float()).dtype == torch.float32


@pytest.mark.parametrize("guide", BOTH, ids=kind)
def test_scores_have_mean_zero_and_samples_no_path(guide):
    """sum_z q(z) grad log q(z) = 0 by autograd; and neither z, nor a detached guide, depends on the logits."""
    logits = guide.logits[:1].clone().requires_grad_()
    live = type(guide)(logits)
    states = live.states()[:, None]
    log_q = live.log_prob(states)
    (score,) = torch.autograd.grad((log_q.detach().exp() * log_q).sum(), logits)
    torch.testing.assert_close(score, torch.zeros_like(score), rtol=0, atol=1e-12)
    assert not live.transform(live.noise((2,), torch.Generator())).requires_grad
    assert not live.detach().log_prob(states).requires_grad


def test_bernoulli_density_is_linear_between_its_values():
    guide = BOTH[0]
    low, high = torch.zeros(2, 3).double(), torch.ones(2, 3).double()
    ends = guide.log_prob(torch.stack([low, high]))
    torch.testing.assert_close(guide.log_prob(0.3 * high + 0.7 * low), 0.7 * ends[0] + 0.3 * ends[1])
    (slope,) = torch.autograd.grad(guide.log_prob(z := low.clone().requires_grad_()).sum(), z)
    torch.testing.assert_close(slope, guide.logits)


def test_categorical_logits_need_not_be_normalised():
    ours, moved = BOTH[1], Categorical(FACTORS + torch.tensor([[[3.0], [-40.0]]]))
    states = ours.states()[:, None]
    torch.testing.assert_close(ours.log_prob(states), moved.log_prob(states))
    assert ours.states().shape == (16, 2, 4)


def test_rounding_leaves_no_noise_without_a_value():
    """In single precision the cells may end below one: what lies above them is the last value."""
    guide = Categorical(torch.zeros(1, 49))
    below_one = torch.tensor([1 - 2.0**-24])
    assert float(guide.log_probs.exp().cumsum(-1)[0, -1]) != 1.0
    z = guide.transform(torch.stack([below_one, torch.zeros(1)]))
    assert float(z[0, 0, -1]) == 1.0 and float(z[1, 0, 0]) == 1.0
    torch.testing.assert_close(z.sum(-1), torch.ones(2, 1))
    sure = Bernoulli(torch.tensor([80.0, -120.0]))
    assert sure.transform(torch.stack([below_one.expand(2), torch.zeros(2)])).tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_one_hot():
    got = one_hot_like(torch.tensor([[2, 0]]), torch.zeros(2, 3))
    assert got.tolist() == [[[0.0, 0.0, 1.0], [1.0, 0.0, 0.0]]] and got.dtype == torch.float32
