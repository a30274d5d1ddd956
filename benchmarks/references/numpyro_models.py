"""NumPyro twins of this suite's problems: the same densities, written the way a user of NumPyro writes them.

Parameters are `numpyro.param` sites; latents and observation share one `numpyro.plate` over the data points, so that
weights are per data point. Needs the extra ``numpyro``.

References:
    Phan, Pradhan & Jankowiak (2019), Composable Effects for Flexible and Accelerated Probabilistic Programming in NumPyro.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax.interpreters.partial_eval import DynamicJaxprTracer
from numpyro.primitives import Messenger


class Twin(NamedTuple):
    """A model and a guide without arguments."""

    model: Callable[[], None]
    guide: Callable[[], None]


class Evaluations(Messenger):
    """Counts values of log p(x, z) while entered: batch elements of observed sites. Under ``vmap`` one particle is seen.

    A run that only looks for dependencies between sites computes nothing, and does not count.
    """

    def __init__(self, fn: Any = None) -> None:
        super().__init__(fn)
        self.number = 0

    def postprocess_message(self, msg: Any) -> None:
        symbolic = any(isinstance(leaf, DynamicJaxprTracer) for leaf in jax.tree.leaves(msg["fn"]))
        if msg["type"] == "sample" and msg["is_observed"] and not symbolic:
            self.number += math.prod(msg["fn"].batch_shape)


def param(block: str, problem: Any) -> dict[str, Any]:
    """One block as `numpyro.param` sites."""
    return {name: numpyro.param(f"{block}.{name}", array(leaf)) for name, leaf in problem.parameters[block].items()}


def array(leaf: Any) -> Any:
    """A tensor as an array of the same type."""
    return jnp.asarray(leaf.detach().cpu().numpy())


def _normal(loc: Any, scale: Any) -> Any:
    return dist.Normal(loc, scale).to_event(1)


def _gaussian_1d(problem: Any) -> Twin:
    x = array(problem.data)

    def model() -> None:
        theta = param("theta", problem)
        with numpyro.plate("data", 1):
            z = numpyro.sample("z", _normal(theta["prior_loc"], jnp.ones(1)))
            numpyro.sample("x", _normal(z, 1.0), obs=x)

    def guide() -> None:
        phi = param("phi", problem)
        with numpyro.plate("data", 1):
            numpyro.sample("z", _normal(phi["loc"], jnp.exp(phi["log_scale"])))

    return Twin(model, guide)


def _linear_gaussian(problem: Any) -> Twin:
    x = array(problem.data)

    def model() -> None:
        theta = param("theta", problem)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", _normal(jnp.zeros(problem.dim), 1.0))
            mean = z @ theta["weight"].T + theta["bias"]
            numpyro.sample("x", _normal(mean, jnp.exp(theta["log_noise_scale"])), obs=x)

    def guide() -> None:
        phi = param("phi", problem)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", _normal(phi["loc"], jnp.exp(phi["log_scale"])))

    return Twin(model, guide)


def _two_layers(problem: Any) -> Twin:
    x = array(problem.data)

    def linear(given: Any, block: dict[str, Any], of: str, scale: str) -> Any:
        return _normal(given @ block[f"{of}weight"].T + block[f"{of}bias"], jnp.exp(block[scale]))

    def model() -> None:
        theta = param("theta", problem)
        with numpyro.plate("data", len(x)):
            z2 = numpyro.sample("z2", _normal(theta["prior_loc"], 1.0))
            z1 = numpyro.sample("z1", linear(z2, theta, "upper_", "upper_log_scale"))
            numpyro.sample("x", linear(z1, theta, "", "log_noise_scale"), obs=x)

    def guide() -> None:
        phi = param("phi", problem)
        with numpyro.plate("data", len(x)):
            z1 = numpyro.sample("z1", linear(x, phi, "", "log_scale"))
            numpyro.sample("z2", linear(z1, phi, "upper_", "upper_log_scale"))

    return Twin(model, guide)


def _belief_net(problem: Any) -> Twin:
    x = array(problem.data)

    def model() -> None:
        theta = param("theta", problem)
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Bernoulli(logits=theta["prior_logits"]).to_event(1))
            logits = z @ theta["weight"].T + theta["bias"]
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide() -> None:
        phi = param("phi", problem)
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Bernoulli(logits=phi["logits"]).to_event(1))

    return Twin(model, guide)


TWINS: dict[str, Callable[[Any], Twin]] = {
    "gaussian-1d": _gaussian_1d,
    "linear-gaussian": _linear_gaussian,
    "two-layer-gaussian": _two_layers,
    "sigmoid-belief-net": _belief_net,
}
"""By the name of the problem; each makes its twin anew for every compilation. Named in ``numpyro_losses`` too."""
