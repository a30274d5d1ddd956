"""The same cell gives the same bits, whoever measures it, beside what, in whichever order; other processors, nearly the same."""

from __future__ import annotations

import os
import random
import subprocess
import sys

import pytest
import torch

from benchmarks import plan, runner
from benchmarks.registry import Registry
from benchmarks.schema import BlockResult, Cell, Record

SUITES = [
    {"problems": ["gaussian-1d"], "estimators": ["iwae", "moving-average-baseline", "sumo"], "num_samples": [3]},
    {"problems": ["gaussian-1d"], "estimators": ["dreg"], "num_samples": [2, 5], "dtype": "float32", "seeds": 2},
    {"problems": ["sigmoid-belief-net"], "estimators": ["disarm", "relax"], "num_samples": [1]},
]


def chosen(replicates=120):
    suites = [plan.Suite.model_validate({**suite, "replicates": replicates}) for suite in SUITES]
    return plan.cells(plan.Config(suite=suites), Registry())[0]


def measure(folder, cells, workers):
    runner.open_run(folder, cells, command="", settings={}, bibliography={}, workers=workers)
    tally = runner.run(folder, cells, workers=workers)
    assert tally.failed == []
    return tally.counts.total()


def test_neither_workers_nor_order_nor_neighbours_nor_going_on_matter(same, tmp_path, monkeypatch):
    """One worker and all cells in order; then three, shuffled, in two sittings of other processes with other hash seeds."""
    cells = chosen()
    assert len(cells) >= 8
    assert measure(tmp_path / "one", cells, 1) == len(cells)
    monkeypatch.setenv("PYTHONHASHSEED", "77")
    shuffled = random.Random(0).sample(cells, len(cells))
    assert shuffled != cells
    measure(tmp_path / "other", shuffled[:3], 1)
    left, done, _ = runner.pending(tmp_path / "other", shuffled)
    assert done == 3
    assert measure(tmp_path / "other", left, 3) == len(cells) - 3
    assert same(tmp_path / "one", tmp_path / "other") == len(cells)


BOUNDS = {
    **{"mean_norm": 1e-5, "variance": 1e-4, "snr": 1e-4, "kurtosis": 1e-4, "bias_norm": 1e-5},
    **{"reference_norm": 1e-6, "detectable_bias": 1e-4},
}
"""By how much numbers in single precision may differ between processors, relative to the number (or, of a mean, to the noise
of one estimate); docs/scale.md states them."""


@pytest.mark.long
def test_other_processors_give_nearly_the_same(stored, tmp_path):
    """The instructions of an older processor in place of this one's: other kernels, other order of sums."""
    if torch.backends.cpu.get_cpu_capability() == "DEFAULT":
        pytest.skip("this processor has no instructions to be left out")
    words = ["run", "-p", "gaussian-1d", "-p", "rainforth", "-e", "iwae", "-e", "dreg", "-e", "vimco", "-K", "8"]
    words += ["-R", "2000", "-j", "1", "--dtype", "float32"]
    for name in ("default", "avx2"):
        line = [sys.executable, "-c", "import sys; from benchmarks.cli import main; main()", *words]
        variables = {
            **os.environ,
            "ATEN_CPU_CAPABILITY": name,
            "MKL_CBWR": "COMPATIBLE" if name == "default" else "AUTO",
        }
        done = subprocess.run([*line, "-o", tmp_path / name], capture_output=True, text=True, env=variables)
        assert done.returncode == 0, done.stderr
    ours, theirs = stored(tmp_path / "avx2"), stored(tmp_path / "default")
    assert ours.keys() == theirs.keys() and len(ours) >= 6
    differ, worst = 0, dict.fromkeys(BOUNDS, 0.0)
    for id, record in ours.items():
        for one, two in zip(record.blocks, theirs[id].blocks, strict=True):
            assert one.verdict == two.verdict
            differ += one != two
            for name in BOUNDS:
                a, b = getattr(one, name), getattr(two, name)
                if a is None or b is None:
                    assert a is b
                    continue
                scale = max(abs(a), (one.variance or 0.0) ** 0.5 if name in ("mean_norm", "bias_norm") else 0.0, 1e-12)
                worst[name] = max(worst[name], abs(a - b) / scale)
    print(worst)
    assert differ, "the same bits: no other kernels were used"
    assert {name: found for name, found in worst.items() if found > BOUNDS[name]} == {}


def test_records_are_compared_in_all_but_timings():
    """What the tests above rest on."""
    from benchmarks import verify

    cell = Cell(problem="p", estimator="e", num_samples=1, replicates=2, seed=0)
    block = BlockResult(
        block="phi", target="elbo", unbiased=True, dimensions=1, replicates=2, verdict="PASS", variance=1.0
    )
    record = Record(id=cell.id, cell=cell, status="ok", blocks=[block])
    nudged = record.model_copy(update={"blocks": [block.model_copy(update={"variance": 1.0 + 2**-52})]})
    assert verify.differences(record, nudged) and not verify.differences(record, record)
    assert not verify.differences(record, record.model_copy(update={"seconds": 3.0}))
