"""The engine beside ``jax.jit(jax.vmap(jax.grad(...)))`` at its best chunk; collected where JAX is installed."""

from __future__ import annotations

import math
import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")

import jax
import jax.numpy as jnp
import numpy as np
import torch

import estimators
from benchmarks.measure import compiled_rows
from benchmarks.problems import Rainforth
from benchmarks.streams import batch_rows
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


def test_beside_jax(benchmark, ratios, timed, one_thread):
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
        f"compiled {shown['compiled']} x"
    )
    benchmark.extra_info.update(shown)
    benchmark.pedantic(engine(compiled), rounds=9)
