"""Pyro twins of this suite's problems: the same densities, written the way a user of Pyro writes them.

Parameters are `pyro.param` sites; latents and observation share one vectorised `pyro.plate` over the data points. Scales
stay logarithms, as the problems declare them, so that gradients are with respect to the same numbers. A discrete latent of
several dimensions is one site for each: Pyro sums over no product of them.

References:
    Bingham et al. (2019), Pyro: Deep Universal Probabilistic Programming.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.func import functional_call

from estimators import Block, Parameters

from ..problems.vae import architecture

PLATES = 1
"""Nesting of plates in every twin: the data plate alone."""


class Twin(NamedTuple):
    """A model and a guide without arguments. Both return the latent, shaped as the problem's own."""

    model: Callable[[], Any]
    guide: Callable[[], Any]


class Evaluations(Messenger):
    """Counts values of log p(x, z) while entered: the batch elements of every observed site that is run."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            self.number += msg["fn"].batch_shape.numel()


def twin(problem: Any, parameters: Parameters) -> Twin:
    """The twin of a problem at given parameters.

    Raises:
        KeyError: if :data:`TWINS` has none.
    """
    return TWINS[problem.name](problem, parameters)


def latent_sites(problem: Any) -> list[str]:
    """Names of the latent sites of a problem's twin, in the guide's order; free of parameters, which may take training."""
    if problem.name in ("sigmoid-belief-net", "categorical"):
        return [f"z_{d}" for d in range(problem.dim)]
    return ["z1", "z2"] if problem.name == "two-layer-gaussian" else ["z"]


def declare(block: str, parameters: Parameters) -> Block:
    """One block as `pyro.param` sites, made from copies of ``parameters`` where Pyro's store has none yet."""
    # Copies: Pyro's store keeps the very tensor it is given and sets requires_grad on it.
    return {name: pyro.param(f"{block}.{name}", leaf.detach().clone) for name, leaf in parameters[block].items()}


def _gaussian_1d(problem: Any, parameters: Parameters) -> Twin:
    """z ~ N(prior_loc, 1), x | z ~ N(z, 1), q = N(loc, exp(log_scale)^2)."""
    one = problem.data.new_ones(1)

    def model() -> Tensor:
        theta = declare("theta", parameters)
        with pyro.plate("data", 1):
            z = pyro.sample("z", dist.Normal(theta["prior_loc"], one).to_event(1))
            pyro.sample("x", dist.Normal(z, one).to_event(1), obs=problem.data)
        return z

    def guide() -> Tensor:
        phi = declare("phi", parameters)
        with pyro.plate("data", 1):
            return pyro.sample("z", dist.Normal(phi["loc"], phi["log_scale"].exp()).to_event(1))

    return Twin(model, guide)


def _linear_gaussian(problem: Any, parameters: Parameters) -> Twin:
    """z ~ N(0, I), x | z ~ N(A z + b, s^2 I), q a free diagonal Gaussian for each data point."""
    x = problem.data
    prior = dist.Normal(x.new_zeros(problem.dim), x.new_ones(problem.dim)).to_event(1)

    def model() -> Tensor:
        theta = declare("theta", parameters)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            mean = z @ theta["weight"].T + theta["bias"]
            pyro.sample("x", dist.Normal(mean, theta["log_noise_scale"].exp()).to_event(1), obs=x)
        return z

    def guide() -> Tensor:
        phi = declare("phi", parameters)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.Normal(phi["loc"], phi["log_scale"].exp()).to_event(1))

    return Twin(model, guide)


def _rainforth(problem: Any, parameters: Parameters) -> Twin:
    """z ~ N(theta, I), x | z ~ N(z, I), q = N(A x + b, (2/3) I)."""
    x = problem.data
    one, scale = x.new_ones(()), x.new_full((), math.sqrt(2 / 3))

    def model() -> Tensor:
        theta = declare("theta", parameters)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(theta["prior_loc"], one).to_event(1))
            pyro.sample("x", dist.Normal(z, one).to_event(1), obs=x)
        return z

    def guide() -> Tensor:
        phi = declare("phi", parameters)
        with pyro.plate("data", len(x)):
            return pyro.sample("z", dist.Normal(x @ phi["weight"].T + phi["bias"], scale).to_event(1))

    return Twin(model, guide)


def _digits_vae(problem: Any, parameters: Parameters) -> Twin:
    """z ~ N(0, I), binary x | z ~ Bernoulli(logits of the decoder), q diagonal from the encoder.

    The networks are the problem's own, with their parameters put in; the densities are Pyro's.
    """
    x = problem.data
    hidden, latent = parameters["theta"]["first.weight"].shape
    encoder, decoder = architecture(x.shape[-1], hidden, latent)
    prior = dist.Normal(x.new_zeros(latent), x.new_ones(latent)).to_event(1)

    def model() -> Tensor:
        theta = declare("theta", parameters)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            logits = functional_call(decoder, theta, (z,))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)
        return z

    def guide() -> Tensor:
        phi = declare("phi", parameters)
        with pyro.plate("data", len(x)):
            loc, log_scale = functional_call(encoder, phi, (x,))
            return pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))

    return Twin(model, guide)


def _mean_field(problem: Any, parameters: Parameters) -> Twin:
    """z ~ N(prior_loc, I), x | z ~ N(A z, s^2 I), q diagonal; one data point."""
    x = problem.data

    def model() -> Tensor:
        theta = declare("theta", parameters)
        with pyro.plate("data", 1):
            z = pyro.sample("z", dist.Normal(theta["prior_loc"], x.new_ones(())).to_event(1))
            scale = theta["log_noise_scale"].exp()
            pyro.sample("x", dist.Normal(z @ theta["weight"].T, scale).to_event(1), obs=x)
        return z

    def guide() -> Tensor:
        phi = declare("phi", parameters)
        with pyro.plate("data", 1):
            return pyro.sample("z", dist.Normal(phi["loc"], phi["log_scale"].exp()).to_event(1))

    return Twin(model, guide)


def _banana(problem: Any, parameters: Parameters) -> Twin:
    """z ~ N(prior_loc, I), x | z ~ N(z2 + curvature (z1^2 - 1), s^2), q diagonal; one data point."""
    x = problem.data

    def model() -> Tensor:
        theta = declare("theta", parameters)
        with pyro.plate("data", 1):
            z = pyro.sample("z", dist.Normal(theta["prior_loc"], x.new_ones(())).to_event(1))
            mean = z[..., 1:] + theta["curvature"] * (z[..., :1] ** 2 - 1)
            pyro.sample("x", dist.Normal(mean, theta["log_noise_scale"].exp()).to_event(1), obs=x)
        return z

    def guide() -> Tensor:
        phi = declare("phi", parameters)
        with pyro.plate("data", 1):
            return pyro.sample("z", dist.Normal(phi["loc"], phi["log_scale"].exp()).to_event(1))

    return Twin(model, guide)


def _two_layers(problem: Any, parameters: Parameters) -> Twin:
    """z2 ~ N(prior_loc, I), z1 | z2, x | z1, all linear and Gaussian; the guide draws z1 from x and z2 from z1."""
    x = problem.data

    def linear(given: Tensor, block: Block, of: str, scale: str) -> dist.TorchDistribution:
        mean = given @ block[f"{of}weight"].T + block[f"{of}bias"]
        return dist.Normal(mean, block[scale].exp()).to_event(1)

    def model() -> tuple[Tensor, Tensor]:
        theta = declare("theta", parameters)
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(theta["prior_loc"], x.new_ones(())).to_event(1))
            z1 = pyro.sample("z1", linear(z2, theta, "upper_", "upper_log_scale"))
            pyro.sample("x", linear(z1, theta, "", "log_noise_scale"), obs=x)
        return z1, z2

    def guide() -> tuple[Tensor, Tensor]:
        phi = declare("phi", parameters)
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", linear(x, phi, "", "log_scale"))
            z2 = pyro.sample("z2", linear(z1, phi, "upper_", "upper_log_scale"))
        return z1, z2

    return Twin(model, guide)


def _together(sites: list[Tensor], event_dim: int) -> Tensor:
    """Sites as one tensor, along a new dimension before their own event's; summed-over ones broadcast."""
    return torch.stack(torch.broadcast_tensors(*sites), -1 - event_dim)


def _belief_net(problem: Any, parameters: Parameters) -> Twin:
    """z_d ~ Bernoulli, x_i | z ~ Bernoulli, q a product of Bernoullis."""
    x, dims = problem.data, range(problem.dim)

    def model() -> Tensor:
        theta = declare("theta", parameters)
        with pyro.plate("data", len(x)):
            sites = [pyro.sample(f"z_{d}", dist.Bernoulli(logits=theta["prior_logits"][d])) for d in dims]
            z = _together(sites, 0)
            logits = z @ theta["weight"].T + theta["bias"]
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)
        return z

    def guide() -> Tensor:
        phi = declare("phi", parameters)
        with pyro.plate("data", len(x)):
            sites = [pyro.sample(f"z_{d}", dist.Bernoulli(logits=phi["logits"][:, d])) for d in dims]
        return _together(sites, 0)

    return Twin(model, guide)


def _categorical(problem: Any, parameters: Parameters) -> Twin:
    """z_d one-hot, x | z ~ N(sum_d W_d z_d, diag(s^2)), q a product of categoricals."""
    x, dims = problem.data, range(problem.dim)

    def model() -> Tensor:
        theta = declare("theta", parameters)
        with pyro.plate("data", len(x)):
            prior = theta["prior_logits"]
            z = _together([pyro.sample(f"z_{d}", dist.OneHotCategorical(logits=prior[d])) for d in dims], 1)
            mean = z.flatten(-2) @ theta["weight"].flatten(-2).T
            pyro.sample("x", dist.Normal(mean, theta["log_noise_scale"].exp()).to_event(1), obs=x)
        return z

    def guide() -> Tensor:
        phi = declare("phi", parameters)
        with pyro.plate("data", len(x)):
            sites = [pyro.sample(f"z_{d}", dist.OneHotCategorical(logits=phi["logits"][:, d])) for d in dims]
        return _together(sites, 1)

    return Twin(model, guide)


TWINS: dict[str, Callable[[Any, Parameters], Twin]] = {
    "gaussian-1d": _gaussian_1d,
    "linear-gaussian": _linear_gaussian,
    "rainforth": _rainforth,
    "gaussian-mean-field": _mean_field,
    "banana": _banana,
    "two-layer-gaussian": _two_layers,
    "sigmoid-belief-net": _belief_net,
    "categorical": _categorical,
    "digits-vae": _digits_vae,
}
"""By the name of the problem; a plug-in adds its own."""
