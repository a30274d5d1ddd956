"""What must not grow: memory with the number of replicates, and what is imported before a word is printed."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("scipy", "pandas", "pyro", "numpyro", "jax", "matplotlib", "arviz_stats")


def output(program: str) -> str:
    """What a program prints in a Python of its own."""
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout


def test_listing_waits_for_torch_and_nothing_else_that_is_large():
    found = output(
        "import sys\n"
        "from benchmarks.catalogue import catalogue\n"
        "from benchmarks.registry import Registry\n"
        "rows = [catalogue(Registry(), what) for what in ('estimators', 'problems')]\n"
        "assert all(len(each) > 10 for each in rows)\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))\n"
    ).split()
    assert "torch" in found
    assert not set(HEAVY) & set(found)


def peak(cell: str) -> int:
    """Peak resident kilobytes of a process that measures one cell in double precision."""
    return int(
        output(
            "import resource, torch\n"
            "from benchmarks.measure import run_cell\n"
            "torch.set_num_threads(1)\n"
            f"record = run_cell({cell})\n"
            "assert record['status'] == 'ok', record['reason']\n"
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        )
    )


@pytest.mark.long
@pytest.mark.parametrize("estimator", ["dreg", "sumo"])
def test_memory_does_not_grow_with_replicates(estimator):
    """64,000 replicates of 441 numbers would be 225 MB; what is kept of tails are 9,192 numbers for each of three blocks."""

    def used(replicates: int) -> int:
        K = 1 if estimator == "sumo" else 8
        cell = {"problem": "rainforth[dim=20,points=1]", "estimator": estimator, "num_samples": K, "seed": 0}
        return peak(repr(cell | {"replicates": replicates}))

    assert used(64_000) - used(4_000) < 40_000
