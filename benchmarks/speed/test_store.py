"""A run folder of 100,000 records: how soon one sees how far it is, goes on with it, and has its report.

Seconds of this process, or of one of its own, on a processor. Making the folder takes two minutes, which are not counted.
"""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks import plan, records, runner
from benchmarks.measure import run_cell
from benchmarks.registry import Registry
from benchmarks.schema import BlockResult, Record

CONFIG = plan.Config(
    suite=[
        plan.Suite(
            problems=["gaussian-1d", "linear-gaussian", "rainforth", "gaussian-mean-field"],
            estimators=["iwae", "dreg", "leave-one-out", "renyi[alpha=0.5]", "jackknife"],
            num_samples=[2, 4, 8, 16, 32],
            replicates=64,
            seeds=1000,
        )
    ]
)
VARYING = ["mean_norm", "bias_norm", "bias_z", "detectable_bias", "variance", "snr", "mse", "skewness", "kurtosis"]
"""Fields of a block that no two seeds have in common; a page of equal rows would be small because it is packed."""
MAIN = """\
import json, resource, sys, time
from benchmarks.cli import main
try:
    main()
finally:
    print(json.dumps([time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss]), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A record that was measured for each setting, and its likes for all other seeds."""
    folder, registry = tmp_path_factory.mktemp("store"), Registry()
    cells, _ = plan.cells(CONFIG, registry)
    books = runner.bibliography(cells, registry)
    settings = CONFIG.model_dump(mode="json")
    runner.open_run(folder, cells, command="gradest run", settings=settings, bibliography=books, workers=1)
    generator = random.Random(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)  # the disk is not what is measured
        for cell in cells:
            if cell.seed == 0:
                measured = Record.model_validate(run_cell(cell.model_dump(mode="json")))
            records.write_cell(folder, _like(measured, generator).model_copy(update={"id": cell.id, "cell": cell}))
    return folder


def _like(record: Record, generator: random.Random) -> Record:
    """A record whose numbers are five per cent away."""

    def near(block: BlockResult) -> BlockResult:
        known = {name: value for name in VARYING if (value := getattr(block, name)) is not None}
        return block.model_copy(update={name: value * _factor(generator) for name, value in known.items()})

    seconds = record.cost.seconds_per_gradient
    cost = record.cost.model_copy(update={"seconds_per_gradient": seconds and seconds * _factor(generator)})
    return record.model_copy(update={"blocks": [near(block) for block in record.blocks], "cost": cost})


def _factor(generator: random.Random) -> float:
    return math.exp(0.05 * generator.gauss(0, 1))


def command(*words: object) -> tuple[float, float]:
    """Seconds on a processor and GiB of memory of one command, the start of the interpreter included."""
    done = subprocess.run([sys.executable, "-c", MAIN, *map(str, words)], check=True, capture_output=True, text=True)
    seconds, kilobytes = json.loads(done.stderr.splitlines()[-1])
    return seconds, kilobytes / 2**20


def test_status(benchmark, ratios, asked, store):
    found, _ = benchmark.pedantic(command, args=("status", store), rounds=1)
    ratios.append(f"gradest status of 100,000 records: {asked(found, 2, at_most=True)} s")
    benchmark.extra_info["seconds"] = found


def test_what_is_left(benchmark, ratios, asked, store):
    def look() -> float:
        start = time.process_time()
        cells, _ = plan.cells(CONFIG, Registry())
        left, done, _ = runner.pending(store, cells)
        assert (len(left), done) == (0, 100_000)
        return time.process_time() - start

    found = benchmark.pedantic(look, rounds=1)
    ratios.append(f"list of 100,000 cells, and what is left of them: {asked(found, 5, at_most=True)} s")
    benchmark.extra_info["seconds"] = found


def test_report(benchmark, ratios, asked, store, tmp_path):
    page = tmp_path / "report.html"
    found, memory = benchmark.pedantic(command, args=("report", store, "-o", page), rounds=1)
    ratios.append(
        f"gradest report of 100,000 records: {asked(found, 60, at_most=True)} s, {asked(memory, 2, at_most=True)} GiB, "
        f"{asked(page.stat().st_size / 1e6, 5, at_most=True)} MB"
    )
    benchmark.extra_info.update({"seconds": found, "GiB": memory, "bytes": page.stat().st_size})
