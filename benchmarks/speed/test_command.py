"""The command as a whole: how soon it answers, what a second worker is worth, how time and memory grow.

Seconds on the wall of processes of their own, so that a busy machine shows.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

import pytest

from benchmarks.executors import usable_cores

MAIN = "from benchmarks.cli import main; main()"
RUNS = 7


def seconds(*words: object) -> float:
    """Of one command, start and end of the interpreter included."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", MAIN, *map(str, words)], check=True, capture_output=True)
    return time.perf_counter() - start


@pytest.mark.parametrize(("words", "most"), [(("--help",), 0.3), (("list",), 1.5)])
def test_answers(benchmark, ratios, asked, words, most):
    seconds(*words)
    found = statistics.median(seconds(*words) for _ in range(RUNS))
    ratios.append(f"gradest {' '.join(words)}: {asked(found, most, at_most=True)} s")
    benchmark.extra_info["seconds"] = found
    benchmark.pedantic(seconds, args=words, rounds=1)


def cells(out, count: int, replicates: int, jobs: int) -> tuple[object, ...]:
    sizes = ("-K", 64, "-R", replicates, "--seeds", count, "--dtype", "float32", "-j", jobs)
    return ("run", "-p", "rainforth[dim=20,points=1]", "-e", "iwae", *sizes, "-o", out)


def test_two_workers_over_one(benchmark, ratios, asked, tmp_path):
    """Once each: 64 cells of about a second. Seconds of gradients are taken alone, so a tenth of a second is not shared."""
    if usable_cores() < 2:
        pytest.skip("one core")
    taken = {jobs: seconds(*cells(tmp_path / str(jobs), 64, 40_000, jobs)) for jobs in (1, 2)}
    ratio = taken[1] / taken[2]
    ratios.append(f"two workers over one, 64 cells: {asked(ratio, 1.8)} ({taken[1]:.0f} s and {taken[2]:.0f} s)")
    benchmark.extra_info["ratio"] = ratio
    benchmark.pedantic(lambda: None, rounds=1)


def test_time_grows_with_cells(benchmark, ratios, tmp_path):
    """Between 8, 16 and 24 cells: what each adds, and what the start costs."""
    taken = {count: seconds(*cells(tmp_path / str(count), count, 20_000, 1)) for count in (8, 16, 24)}
    first, second = taken[16] - taken[8], taken[24] - taken[16]
    ratios.append(
        f"8 more cells take {first:.2f} s, and 8 more again {second:.2f} s: {second / first:.2f} of that (1 within 0.05 asked)"
    )
    benchmark.extra_info["ratio"] = second / first
    benchmark.pedantic(lambda: None, rounds=1)


def test_memory_is_flat_in_replicates(benchmark, ratios, tmp_path):
    code = (
        "import sys, torch, resource; from benchmarks.measure import run_cell; from benchmarks.schema import Cell; torch.set_num_threads(1)\n"
        "cell = Cell(problem='rainforth[dim=20,points=1,perturbation=0.01,seed=0]', estimator='iwae', num_samples=64, "
        "replicates=int(sys.argv[1]), seed=0, dtype='float32')\n"
        "assert run_cell(cell.model_dump())['status'] == 'ok'; print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    found = {
        count: int(
            subprocess.run([sys.executable, "-c", code, str(count)], check=True, capture_output=True, text=True).stdout
        )
        for count in (5_000, 80_000)
    }
    ratio = found[80_000] / found[5_000]
    ratios.append(f"peak memory of 80,000 replicates over 5,000: {ratio:.3f} ({found[5_000] // 1024} MiB)")
    benchmark.extra_info["ratio"] = ratio
    benchmark.pedantic(lambda: None, rounds=1)
    assert ratio < 1.1
