"""Pyro models and guides as users write them; tests name this file as a user names hers."""

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, PyroSample
from torch import nn
from torch.distributions import constraints

positive = constraints.positive
_generator = torch.Generator().manual_seed(0)


def _normal(*shape):
    return torch.randn(*shape, generator=_generator)


X = _normal(30, 3)
Y = X @ torch.tensor([1.0, -1.0, 0.5]) + 0.3 * _normal(30)
BITS = (torch.rand(8, 12, generator=_generator) < 0.4).float()
FLIPS = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0])
CLUSTERED = torch.tensor([-1.2, 0.3, 1.4, 0.9])


# Bayesian regression, a PyroModule with priors on a network's weights and a bounded scale.
class Regression(PyroModule):
    def __init__(self):
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 3]).to_event(2))
        self.linear.bias = PyroSample(dist.Normal(0.0, 10.0).expand([1]).to_event(1))

    def forward(self, x, y):
        sigma = pyro.sample("sigma", dist.Uniform(0.0, 10.0))
        mean = self.linear(x).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("obs", dist.Normal(mean, sigma), obs=y)


def regression_data():
    return {"x": X, "y": Y}


# A VAE with networks registered by pyro.module.
class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.hidden, self.loc, self.scale = nn.Linear(12, 8), nn.Linear(8, 2), nn.Linear(8, 2)

    def forward(self, x):
        hidden = torch.tanh(self.hidden(x))
        return self.loc(hidden), self.scale(hidden).exp()


with torch.random.fork_rng():
    torch.manual_seed(1)
    ENCODER, DECODER = Encoder(), nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 12))


def vae(x):
    pyro.module("decoder", DECODER)
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), x.new_ones(2)).expand([len(x), 2]).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=DECODER(z)).to_event(1), obs=x)


def vae_guide(x):
    pyro.module("encoder", ENCODER)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(*ENCODER(x)).to_event(1))


def vae_data():
    return BITS


# A plate that takes random subsets, which the guide knows nothing of.
def subsampled(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 30, subsample_size=5) as indices:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[indices])


def whole(y):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 30):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def silent(y):
    """The likelihood is computed from a detached latent: its part of every path derivative is lost, without a word."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 30):
        pyro.sample("y", dist.Normal(mu.detach(), 1.0), obs=y)


def normal_guide(y):
    loc = pyro.param("loc", torch.tensor(0.4))
    scale = pyro.param("scale", torch.tensor(0.3), constraint=positive)
    pyro.sample("mu", dist.Normal(loc, scale))


def outcomes():
    return Y


# A coin: Beta prior and Beta guide.
def coin(flips):
    fairness = pyro.sample("fairness", dist.Beta(2.0, 3.0))
    with pyro.plate("flips", len(flips)):
        pyro.sample("flip", dist.Bernoulli(fairness), obs=flips)


def coin_guide(flips):
    a = pyro.param("a", torch.tensor(3.0, dtype=torch.float64), constraint=positive)
    b = pyro.param("b", torch.tensor(2.0, dtype=torch.float64), constraint=positive)
    pyro.sample("fairness", dist.Beta(a, b))


def flips():
    return FLIPS.double()


# A mixture with a Dirichlet, a Gamma and, in the guide, categories: not reparameterisable.
def mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    precision = pyro.sample("precision", dist.Gamma(2.0, 2.0))
    locs = pyro.param("locs", torch.tensor([-1.0, 0.0, 1.0]))
    with pyro.plate("data", len(x)):
        which = pyro.sample("which", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[which], precision.rsqrt()), obs=x)


def mixture_guide(x):
    weights = pyro.param("alpha", torch.tensor([2.0, 3.0, 4.0]), constraint=positive)
    gamma = pyro.param("gamma", torch.tensor([2.0, 1.0]), constraint=positive)
    probs = pyro.param("probs", torch.ones(len(x), 3) / 3, constraint=constraints.simplex)
    pyro.sample("weights", dist.Dirichlet(weights))
    pyro.sample("precision", dist.Gamma(gamma[0], gamma[1]))
    with pyro.plate("data", len(x)):
        pyro.sample("which", dist.Categorical(probs))


def clustered():
    return CLUSTERED


# A switch with a Bernoulli guide.
def switch(y):
    on = pyro.sample("on", dist.Bernoulli(0.3))
    with pyro.plate("data", 30):
        pyro.sample("y", dist.Normal(0.5 * on, 1.0), obs=y)


def switch_guide(y):
    pyro.sample("on", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(-0.4))))


# What must be refused, with the site or parameter named.
def empty_guide(y):
    pyro.param("loc", torch.tensor(0.4))


def sharing(y):
    mu = pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.4)), 1.0))
    with pyro.plate("data", 30):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


# Two bits of which the data know the difference, while the guide draws them apart.
def two_bits():
    a, b = (pyro.sample(name, dist.Bernoulli(0.5)) for name in "ab")
    pyro.sample("x", dist.Normal(3.0 * (a - b), 1.0), obs=torch.tensor(3.0))


def two_bits_guide():
    for name in "ab":
        pyro.sample(name, dist.Bernoulli(logits=pyro.param(f"{name}_logit", torch.tensor(0.2))))
