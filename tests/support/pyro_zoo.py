"""More Pyro programs, in the manner of Pyro's own examples and tests: what must run, and what must be refused."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.distributions.transforms import iterated, planar
from pyro.infer import config_enumerate
from pyro.infer.autoguide import AutoDelta, AutoDiagonalNormal, AutoGuideList, AutoNormal, AutoNormalizingFlow
from pyro.nn import PyroModule, PyroParam
from torch import nn
from torch.distributions import constraints

positive, simplex, unit = constraints.positive, constraints.simplex, constraints.unit_interval
_generator = torch.Generator().manual_seed(1)
X = torch.cat([torch.randn(4, generator=_generator) - 2, torch.randn(4, generator=_generator) + 2])
GRID = torch.randn(5, 4, generator=_generator)
PIXELS = (torch.rand(10, 9, generator=_generator) < 0.4).float()
WORDS = torch.tensor([[5.0, 2.0, 2.0, 1.0], [1.0, 1.0, 4.0, 4.0]])
COUNTS = torch.tensor([2.0, 0.0, 3.0, 1.0], dtype=torch.float64)


def points():
    return X


def grid():
    return GRID


def pixels():
    return PIXELS


def words():
    return WORDS


def counts():
    return COUNTS


def positive_param(name, value):
    return pyro.param(name, torch.as_tensor(value), constraint=positive)


# Nested plates, one of them with random subsets.
def nested(x):
    with pyro.plate("rows", 5, subsample_size=3, dim=-2) as rows:
        level = pyro.sample("level", dist.Normal(0.0, 1.0))
        with pyro.plate("columns", 4, dim=-1):
            pyro.sample("x", dist.Normal(level, 0.5), obs=x[rows])


# A VAE on minibatches, weighed as a whole or by the image.
DECODER, ENCODER = nn.Linear(2, 9), nn.Linear(9, 4)


def minibatch_vae(x):
    pyro.module("decoder", DECODER)
    with pyro.plate("data", 10, subsample_size=4) as i:
        z = pyro.sample("z", dist.Normal(torch.zeros(4, 2), 1.0).to_event(1))
        pyro.sample("x", dist.Bernoulli(logits=DECODER(z)).to_event(1), obs=x[i])


def minibatch_vae_guide(x):
    pyro.module("encoder", ENCODER)
    with pyro.plate("data", 10, subsample_size=4) as i:
        loc, log_scale = ENCODER(x[i]).chunk(2, -1)
        pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


# Networks that one module holds for model and guide, as in Pyro's deep Markov model; and what both really use.
class Whole(nn.Module):
    def __init__(self):
        super().__init__()
        self.decoder, self.encoder, self.idle = nn.Linear(2, 9), nn.RNN(9, 4, batch_first=True), nn.Linear(1, 1)
        self.start = nn.Parameter(torch.zeros(2))

    def model(self, x):
        pyro.module("whole", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.start, 1.0).expand([len(x), 2]).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("whole", self)
        loc, log_scale = self.encoder(x[:, None])[0][:, 0].chunk(2, -1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


with torch.random.fork_rng():
    torch.manual_seed(2)
    whole = Whole()


# A mixture with several discrete sites; a hidden Markov model of a few steps.
def mixture(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    with pyro.plate("components", 3):
        loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", len(x)):
        which = pyro.sample("which", dist.Categorical(weights))
        flag = pyro.sample("flag", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(loc[which] + 0.1 * flag, scale[which]), obs=x)


def mixture_guide(x):
    pyro.sample("weights", dist.Dirichlet(positive_param("alpha", [2.0, 3.0, 4.0])))
    with pyro.plate("components", 3):
        pyro.sample("loc", dist.Normal(pyro.param("loc_loc", torch.tensor([-2.0, 0.0, 2.0])), 0.2))
        pyro.sample("scale", dist.LogNormal(pyro.param("scale_loc", torch.zeros(3)), 0.1))
    with pyro.plate("data", len(x)):
        pyro.sample("which", dist.Categorical(pyro.param("probs", torch.ones(len(x), 3) / 3, constraint=simplex)))
        pyro.sample("flag", dist.Bernoulli(pyro.param("flags", 0.4 * torch.ones(len(x)), constraint=unit)))


def hidden_markov(x):
    turn = pyro.sample("turn", dist.Dirichlet(torch.eye(2) * 2 + 1).to_event(1))
    state = torch.tensor(0)
    for t in pyro.markov(range(3)):
        state = pyro.sample(f"state_{t}", dist.Categorical(turn[state]))
        pyro.sample(f"x_{t}", dist.Normal(2.0 * state - 1, 1.0), obs=x[t])


def hidden_markov_guide(x):
    pyro.sample("turn", dist.Dirichlet(positive_param("rows", torch.eye(2) + 1.5)).to_event(1))
    for t in pyro.markov(range(3)):
        pyro.sample(f"state_{t}", dist.Categorical(logits=pyro.param(f"logits_{t}", torch.zeros(2))))


# Laws of every kind, in the model and in the guide.
def laws(x):
    total = sum(pyro.sample(name, fn()) for name, fn in PRIORS.items())
    factor = pyro.sample("factor", dist.LKJCholesky(3, 2.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(total + factor[..., 2, 0], 3.0), obs=x)


PRIORS = {
    "gamma": lambda: dist.Gamma(2.0, 1.0), "beta": lambda: dist.Beta(2.0, 3.0), "log": lambda: dist.LogNormal(0.0, 1.0),
    "exponential": lambda: dist.Exponential(1.0), "cauchy": lambda: dist.HalfCauchy(1.0),
    "student": lambda: dist.StudentT(4.0, 0.0, 1.0), "weibull": lambda: dist.Weibull(2.0, 1.5),
    "inverse": lambda: dist.InverseGamma(3.0, 2.0), "angle": lambda: dist.VonMises(0.0, 2.0),
    "count": lambda: dist.Poisson(2.0), "tries": lambda: dist.Geometric(0.4), "wins": lambda: dist.Binomial(5, torch.tensor(0.3)),
}  # fmt: skip


def laws_guide(x):
    pyro.sample("gamma", dist.Gamma(positive_param("gamma_a", 2.0), 1.5))
    pyro.sample("beta", dist.Beta(positive_param("beta_a", 2.0), 2.0))
    pyro.sample("log", dist.LogNormal(pyro.param("log_loc", torch.tensor(0.1)), 0.8))
    pyro.sample("exponential", dist.Exponential(positive_param("rate", 1.2)))
    pyro.sample("cauchy", dist.HalfCauchy(positive_param("width", 1.1)))
    pyro.sample("student", dist.StudentT(positive_param("freedom", 5.0), 0.1, 1.0))
    pyro.sample("weibull", dist.Weibull(positive_param("weibull_scale", 2.1), 1.5))
    pyro.sample("inverse", dist.InverseGamma(positive_param("inverse_a", 3.5), 2.0))
    pyro.sample("angle", dist.VonMises(pyro.param("centre", torch.tensor(0.3)), 2.5))
    pyro.sample("count", dist.Poisson(positive_param("mean", 1.5)))
    pyro.sample("tries", dist.Geometric(pyro.param("chance", torch.tensor(0.5), constraint=unit)))
    pyro.sample("wins", dist.Binomial(5, pyro.param("odds", torch.tensor(0.4), constraint=unit)))
    pyro.sample("factor", dist.LKJCholesky(3, positive_param("concentration", 3.0)))


# Handlers of scale and mask, factors, and values that are missing.
def handled(x):
    with poutine.scale(scale=0.3):
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.factor("pull", -((mu - 1.0) ** 4))
    twice = pyro.deterministic("twice", 2 * mu)
    with pyro.plate("data", len(x)), poutine.mask(mask=x > -2.5):
        pyro.sample("x", dist.Normal(twice, 1.0), obs=x, obs_mask=x < 2.5)


def handled_guide(x):
    with poutine.scale(scale=0.3):
        normal_guide(x)
    with pyro.plate("data", len(x)), poutine.mask(mask=(x > -2.5) & ~(x < 2.5)):
        pyro.sample("x_unobserved", dist.Normal(pyro.param("missing", torch.zeros(len(x))), 1.0))


def normal_guide(x):
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.2)), positive_param("scale", 0.4)))


# First guesses that are drawn at every call and used once; and a score where the law would have a path.
def guessing_guide(x):
    loc, scale = pyro.param("loc", torch.randn(())), positive_param("scale", 0.1 + dist.Gamma(2.0, 9.0).sample())
    pyro.sample("mu", dist.Normal(loc, scale).has_rsample_(False))


# A guide that is a PyroModule class, and one whose covariance is a Cholesky factor.
def plane(x):
    w = pyro.sample("w", dist.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(w.sum(-1), 1.0), obs=x)


class PlaneGuide(PyroModule):
    def __init__(self):
        super().__init__()
        self.loc = PyroParam(torch.tensor([0.1, -0.2]))
        self.factor = PyroParam(0.3 * torch.eye(2), constraint=constraints.lower_cholesky)

    def forward(self, x):
        pyro.sample("w", dist.MultivariateNormal(self.loc, scale_tril=self.factor))


class Holder:
    def model(self, x):
        return plane(x)


holder = Holder()


def topics(x):
    with pyro.plate("topics", 2):
        topic = pyro.sample("topic", dist.Dirichlet(torch.ones(4)))
    with pyro.plate("documents", len(x)):
        share = pyro.sample("share", dist.Dirichlet(torch.ones(2)))
        pyro.sample("x", dist.Multinomial(10, probs=share @ topic), obs=x)


# Conjugate: the rate of Poisson counts.
def rate(n):
    value = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(n)):
        pyro.sample("n", dist.Poisson(value), obs=n)


def rate_guide(n):
    a, b = (positive_param(name, torch.tensor(value).double()) for name, value in (("a", 3.0), ("b", 2.0)))
    pyro.sample("rate", dist.Gamma(a, b))


def rate_exact(target):
    """ELBO of Gamma(a, b) and its gradient in log a and log b: E log p(n | rate) - KL, by special functions."""
    from torch.func import grad

    def elbo(log_a, log_b):
        a, b = log_a.exp(), log_b.exp()
        mean_log, mean = torch.digamma(a) - b.log(), a / b
        prior = mean_log - mean  # Gamma(2, 1), of constant one
        entropy = a - b.log() + torch.lgamma(a) + (1 - a) * torch.digamma(a)
        return COUNTS.sum() * mean_log - len(COUNTS) * mean - torch.lgamma(COUNTS + 1).sum() + prior + entropy

    if target.name != "elbo":
        return None
    here = torch.tensor(3.0).double().log(), torch.tensor(2.0).double().log()
    a, b = grad(elbo, argnums=(0, 1))(*here)
    return {"value": elbo(*here), "theta": {}, "phi": {"a": a, "b": b}}


def rate_wrong_shape(target):
    return {"value": 0.0, "phi": {"a": [1.0, 2.0], "b": 0.0}}


def rate_wrong_name(_):
    return {"value": 0.0, "phi": {"a": 1.0, "c": 0.0}}


# Derivatives that are not those of the values.
def two(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    return mu, pyro.sample("shift", dist.Normal(0.0, 1.0))


def two_guide(x):
    normal_guide(x)
    pyro.sample("shift", dist.Normal(pyro.param("shift_loc", torch.tensor(0.2)), 0.4))


def detached_latent(x):
    mu, shift = two(x)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu.detach() + shift, 1.0), obs=x)


def step(x):
    mu, shift = two(x)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(torch.where(mu > 0.3, 1.0, -1.0) + shift, 1.0), obs=x)


def smooth_pair(x):
    mu, shift = two(x)
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(torch.relu(mu) + shift, 1.0), obs=x)


def detached_parameter(x):
    mu = pyro.sample("mu", dist.Normal(pyro.param("prior", torch.tensor(0.3)).data, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def detached_guide(x):
    loc = pyro.param("loc", torch.tensor(0.2)).detach()
    pyro.sample("mu", dist.Normal(loc, positive_param("scale", 0.4)))


def plain(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def plain_exact(target):
    """ELBO of Normal(loc, scale) and its gradient in loc and log scale, term by term."""
    loc, scale, n = 0.2, 0.4, len(X)
    square = float(((X - loc) ** 2).sum()) + n * scale**2 + loc**2 + scale**2  # of x - mu, and of mu
    value = -0.5 * square - 0.5 * n * math.log(2 * math.pi) + 0.5 + math.log(scale)
    return {"value": value, "phi": {"loc": float((X - loc).sum()) - loc, "scale": 1 - (n + 1) * scale**2}}


def plain_off(target):
    stated = plain_exact(target)
    return {**stated, "phi": {**stated["phi"], "scale": 1.1 * stated["phi"]["scale"]}}


# Guides of which some estimators are wrong.
class PointAndNormal(AutoGuideList):
    def __init__(self, model):
        super().__init__(model)
        self.append(AutoDelta(poutine.block(model, expose=["mu"])))
        self.append(AutoDiagonalNormal(poutine.block(model, hide=["mu"])))


class Planar(AutoNormalizingFlow):
    def __init__(self, model):
        super().__init__(model, partial(iterated, 2, planar))


def auxiliary_guide(x):
    u = pyro.sample("u", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.2)) + 0.3 * u, positive_param("scale", 0.4)))


# What cannot be done, and is told.
def branching(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mu if mu > 0 else -mu, 1.0), obs=x[0])


def numbers(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mu.item(), 1.0), obs=x[0])


def random_inside(x):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(mu + torch.randn(()), 1.0), obs=x[0])


def random_guide(x):
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.2)) + 0.1 * torch.randn(()), 0.4))


NORM = nn.Sequential(nn.Linear(1, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))


def batch_norm(x):
    pyro.module("norm", NORM)
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(NORM(mu + x[:, None])[:, 0], 1.0), obs=x)


def positive_only(x):
    mu = pyro.sample("mu", dist.Gamma(2.0, 1.0))
    pyro.sample("x", dist.Normal(mu, 1.0), obs=x[0])


def own_fault(x):
    raise ValueError("my own fault\nof two lines")


def impossible_guide(x):
    pyro.sample("mu", dist.Empirical(torch.tensor([0.0, 1.0]), pyro.param("w", torch.zeros(2))))


def straight_through_guide(x):
    half, logits = torch.tensor(0.5), pyro.param("logits", torch.tensor(0.1))
    pyro.sample("mu", dist.RelaxedBernoulliStraightThrough(half, logits=logits))


@config_enumerate
def enumerated(x):
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(2)))
    with pyro.plate("data", len(x)):
        which = pyro.sample("which", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(2.0 * which - 1.0, 1.0), obs=x)


enumerated_guide = AutoNormal(poutine.block(enumerated, expose=["weights"]))
