"""Streams and batch sizes: fixed by what is measured, and by nothing else."""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats

from benchmarks.problems import Gaussian1D, LinearGaussian, Rainforth
from benchmarks.streams import WORKING_SET, batch_rows, generator

IDENTITIES = [
    ("gradient", "rainforth", 4, 0),
    ("gradient", "rainforth", 4, 1),
    ("gradient", "rainforth", 5, 0),
    ("gradient", "rainforth", "4", 0),
    ("gradient", "rainforth4", 0),
    ("reference", "rainforth", 4, 0),
]


def test_equal_identities_have_equal_streams():
    first, second = (torch.rand(5, generator=generator("cpu", "gradient", "a", 1)) for _ in range(2))
    assert torch.equal(first, second)


def test_different_identities_have_different_streams():
    seeds = [generator("cpu", *identity).initial_seed() for identity in IDENTITIES]
    assert len(set(seeds)) == len(seeds)


def test_the_stream_is_that_of_every_process_and_machine():
    # Written out once more: a change would make stored records disagree with what is measured anew.
    digest = hashlib.sha256(b'["gradient","x",1]').digest()
    state = np.random.SeedSequence(int.from_bytes(digest, "big")).generate_state(1, np.uint64)
    seed = generator("cpu", "gradient", "x", 1).initial_seed()
    assert seed == int(state[0]) % 2**63 == 6368611666787792307
    code = 'from benchmarks.streams import generator; print(generator("cpu", "gradient", "x", 1).initial_seed())'
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(found.stdout) == seed


def test_no_global_state_is_touched():
    before = torch.get_rng_state()
    torch.rand(3, generator=generator("cpu", "gradient", "x", 1))
    assert torch.equal(before, torch.get_rng_state())


def test_streams_of_neighbouring_seeds_are_not_correlated():
    """Six pairs of 20,000 normals; |r| sqrt(n) is standard normal: all six below 4.5 but for 4e-5."""
    draws = [torch.randn(20_000, generator=generator("cpu", "gradient", "p", 1, seed)) for seed in range(4)]
    for a, b in itertools.combinations(draws, 2):
        assert abs(stats.pearsonr(a, b).statistic) * 20_000**0.5 < 4.5


@pytest.mark.parametrize("num_samples", [1, 64, 1000, 10**6, 10**8])
@pytest.mark.parametrize("problem", [Gaussian1D(), LinearGaussian(), Rainforth(4, 8), Rainforth(20, 1024)])
def test_batches_keep_to_the_working_set(problem, num_samples):
    rows = batch_rows(problem, num_samples)
    latents = problem.guide(problem.parameters["phi"]).noise((1,), torch.Generator()).numel()
    assert 1 <= rows <= 2048
    assert rows == 1 or rows * num_samples * latents <= WORKING_SET
    assert rows <= batch_rows(problem, 1)


def test_batches_do_not_depend_on_the_precision():
    assert batch_rows(Rainforth(20, 64, dtype="float32"), 64) == batch_rows(Rainforth(20, 64), 64)
