"""A regression as a user of Pyro writes it: D = 20 latents, one of them LogNormal, and constrained scales."""

import pyro
import pyro.distributions as dist
import torch
from torch.distributions import constraints

WEIGHTS, POINTS = 18, 50
_generator = torch.Generator().manual_seed(0)
X = torch.randn(POINTS, WEIGHTS, generator=_generator)
Y = X @ torch.linspace(-1, 1, WEIGHTS) + 0.3 + 0.5 * torch.randn(POINTS, generator=_generator)


def data():
    return X, Y


def model(x, y):
    intercept = pyro.sample("intercept", dist.Normal(0.0, 2.0))
    noise = pyro.sample("noise", dist.LogNormal(-0.5, 0.5))
    with pyro.plate("weights", WEIGHTS, dim=-1):
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
    with pyro.plate("data", POINTS, dim=-1):
        pyro.sample("y", dist.Normal(intercept + weight @ x.T, noise), obs=y)


def guide(x, y):
    scale = pyro.param("scale", torch.full((WEIGHTS,), 0.1), constraint=constraints.positive)
    loc = pyro.param("loc", torch.linspace(-0.9, 0.9, WEIGHTS))
    near = pyro.param("near", torch.tensor([0.2, -0.6]))
    spread = pyro.param("spread", torch.tensor([0.2, 0.1]), constraint=constraints.positive)
    pyro.sample("intercept", dist.Normal(near[0], spread[0]))
    pyro.sample("noise", dist.LogNormal(near[1], spread[1]))
    with pyro.plate("weights", WEIGHTS, dim=-1):
        pyro.sample("weight", dist.Normal(loc, scale))
