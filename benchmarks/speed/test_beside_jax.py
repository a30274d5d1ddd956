"""The engine beside ``jax.jit(jax.vmap(jax.grad(...)))`` at its best chunk; collected where JAX is installed."""

from __future__ import annotations

import math
import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

import estimators
from benchmarks.measure import compiled_rows
from benchmarks.problems import Rainforth
from benchmarks.speed.steps import BATCH, LATENT, ByHand, images
from benchmarks.streams import batch_rows
from benchmarks.trainer import Session, Settings
from estimators import replicates

K, DIM = 64, 20
CHUNKS = (32, 64, 128, 256, 512)
BATCHES = 10


def bound(p, eps, x):
    """The bound of :class:`Rainforth` with constants left out, as one would write it."""
    scale = math.sqrt(2 / 3)
    loc = x @ p["weight"].T + p["bias"]
    z = loc + scale * eps
    log_p = -0.5 * ((z - p["prior_loc"]) ** 2 + (x - z) ** 2).sum(-1)
    log_w = log_p + 0.5 * (((z - loc) / scale) ** 2).sum(-1)
    return (jax.nn.logsumexp(log_w, 0) - math.log(K)).mean()


def test_beside_jax(benchmark, ratios, asked, timed, one_thread):
    problem, generator = Rainforth(dim=DIM, points=1, dtype="float32"), torch.Generator().manual_seed(0)
    parameters = {k: jnp.asarray(v.numpy()) for block in problem.parameters.values() for k, v in block.items()}
    x, key = jnp.asarray(problem.data.numpy()), jax.random.PRNGKey(0)
    estimator = estimators.get("iwae", num_samples=K)
    rows, compiled = batch_rows(problem, K), compiled_rows(estimator, problem)

    noise = torch.randn(K, 1, DIM, generator=generator)
    found = estimator.gradient(problem, problem.parameters, noise)
    theirs = jax.grad(bound)(parameters, jnp.asarray(noise.numpy()), x)
    for name, leaf in {**found.theta, **found.phi}.items():
        np.testing.assert_allclose(np.asarray(theirs[name]), leaf.numpy(), rtol=1e-3, atol=1e-4)

    one = jax.grad(lambda p, key: bound(p, jax.random.normal(key, (K, 1, DIM)), x))
    many = jax.jit(jax.vmap(one, (None, 0)))

    def jaxed(chunk: int):
        keys = jax.random.split(key, chunk)
        return lambda: [jax.block_until_ready(many(parameters, keys)) for _ in range(BATCHES)]

    def engine(rows_of=None):
        def run() -> None:
            for _ in range(BATCHES):
                replicates.stacked(estimator, problem, problem.parameters, rows, generator, rows_of)

        return run

    work = {f"jax {chunk}": (jaxed(chunk), BATCHES * chunk) for chunk in CHUNKS}
    ours = {"eager": (engine(), BATCHES * rows), "compiled": (engine(compiled), BATCHES * rows)}
    taken = timed(work | ours)
    best = min(work, key=taken.median)
    shown = {name: round(taken.ratio(best, name), 2) for name in ours}
    ratios.append(
        f"beside {best} at {1 / taken.median(best):.0f} gradients/s, float32, one thread: eager {shown['eager']} x, "
        f"compiled {asked(shown['compiled'], 2.5)} x"
    )
    benchmark.extra_info.update(shown)
    benchmark.pedantic(engine(compiled), rounds=9)


class ByJax:
    """One training step of Burda's one-layer network: bound, gradient and Adam in one ``jax.jit``."""

    def __init__(self, num_samples: int) -> None:
        hand = ByHand(num_samples)
        self.key, self.count = jax.random.PRNGKey(0), 0
        self.grey = jnp.asarray(hand.images.numpy())
        self.leaves = {
            f"{block}.{name}": jnp.asarray(leaf.detach().numpy())
            for block, leaves in hand.blocks.items()
            for name, leaf in leaves.items()
        }
        self.moments = [{name: jnp.zeros_like(leaf) for name, leaf in self.leaves.items()} for _ in range(2)]

        def bound(p, x, eps):
            def linear(name, v):
                return v @ p[f"{name}.weight"].T + p[f"{name}.bias"]

            h = jnp.tanh(linear("phi.second", jnp.tanh(linear("phi.first", x))))
            loc, log_scale = linear("phi.loc", h), linear("phi.log_scale", h)
            z = loc + jnp.exp(log_scale) * eps
            logits = linear("theta.logits", jnp.tanh(linear("theta.second", jnp.tanh(linear("theta.first", z)))))
            fit = (x * logits - jax.nn.softplus(logits)).sum(-1)
            log_w = fit - 0.5 * (z**2).sum(-1) + 0.5 * (eps**2).sum(-1) + log_scale.sum(-1)
            return (jax.nn.logsumexp(log_w, 0) - math.log(len(eps))).mean()

        self.bound = bound

        def step(p, m, v, count, key, grey):
            rows, pixels, noise = jax.random.split(key, 3)
            x = grey[jax.random.randint(rows, (BATCH,), 0, len(grey))]
            x = jax.random.bernoulli(pixels, x).astype(x.dtype)
            g = jax.grad(bound)(p, x, jax.random.normal(noise, (num_samples, BATCH, LATENT)))
            m = {k: 0.9 * m[k] + 0.1 * g[k] for k in p}
            v = {k: 0.999 * v[k] + 0.001 * g[k] ** 2 for k in p}
            one, two = 1 - 0.9**count, 1 - 0.999**count
            p = {k: p[k] + 1e-3 * (m[k] / one) / (jnp.sqrt(v[k] / two) + 1e-4) for k in p}
            return p, m, v

        self.run = jax.jit(step)

    def step(self) -> None:
        self.count += 1
        key = jax.random.fold_in(self.key, self.count)
        state = self.run(self.leaves, *self.moments, self.count, key, self.grey)
        self.leaves, *self.moments = jax.block_until_ready(state)


def test_both_bounds_have_one_gradient():
    hand, theirs = ByHand(5), ByJax(5)
    x = (hand.images[:BATCH] > 0.15).float()
    eps = torch.randn(5, BATCH, LATENT, generator=torch.Generator().manual_seed(1))
    slopes = torch.autograd.grad(hand.bound(x, eps), hand.leaves)
    found = jax.grad(theirs.bound)(theirs.leaves, jnp.asarray(x.numpy()), jnp.asarray(eps.numpy()))
    for name, slope in zip(theirs.leaves, slopes, strict=True):
        np.testing.assert_allclose(np.asarray(found[name]), slope.numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")  # torch's own, of its compiler
@pytest.mark.parametrize(("num_samples", "least"), [(1, 1.0), (50, 1.4)])
def test_a_training_step_beside_jax(benchmark, ratios, asked, timed, one_thread, num_samples, least):
    theirs, made = ByJax(num_samples), {}
    for compiled in (False, True):
        settings = {"compile": compiled, "objective": {"num_samples": num_samples}}
        made[compiled] = Session(Settings.model_validate(settings), images())
        made[compiled]._advance()
    theirs.step()
    work = {"jax": (theirs.step, 1), "eager": (made[False]._advance, 1), "compiled": (made[True]._advance, 1)}
    taken = timed(work, 21 if num_samples == 1 else 9)
    eager, compiled = taken.ratio("jax", "eager"), taken.ratio("jax", "compiled")
    ratios.append(
        f"training step, K={num_samples}, over JAX's jit ({1e3 * taken.median('jax'):.1f} ms): eager {eager:.2f}, "
        f"the better of eager and compiled {asked(max(eager, compiled), least)}"
    )
    benchmark.extra_info.update(eager=eager, compiled=compiled)
    benchmark.pedantic(theirs.step, rounds=3)
