"""Coarser products of matrices: where they hold, where they do not, and that they are what the processor says it has."""

from __future__ import annotations

import pytest
import torch

from benchmarks import measure
from benchmarks.arithmetic import matmul_precision
from benchmarks.images import Images
from benchmarks.measure import run_cell
from benchmarks.schema import Cell
from benchmarks.trainer import Pair, Session, Settings
from estimators import Refusal


@pytest.mark.parametrize("share", [False, True])
def test_replicates_and_seconds_are_of_the_matmul_precision_and_the_truth_is_not(monkeypatch, share):
    seen = {"rows": set(), "truth": set(), "price": set()}

    def spied(name, module, what):
        before = getattr(module, what)

        def called(*given, **named):
            seen[name].add(torch.get_float32_matmul_precision())
            return before(*given, **named)

        monkeypatch.setattr(module, what, called)

    spied("rows", measure.sweep if share else measure.replicates, "Shared" if share else "batches")
    spied("truth", measure, "truth")
    spied("price", measure, "price")
    cell = Cell(
        problem="rainforth[dim=2,points=1,perturbation=0.01,seed=0]", estimator="iwae", num_samples=2, replicates=50,
        seed=0, dtype="float32", matmul_precision="medium", versions={"shared draws": "2"} if share else {},
    )  # fmt: skip
    assert run_cell(cell.model_dump())["status"] == "ok"
    assert seen == {"rows": {"medium"}, "truth": {"highest"}, "price": {"medium"}}
    assert torch.get_float32_matmul_precision() == "highest"


def test_products_are_of_bfloat16_where_the_processor_has_it():
    """One linear layer of 512 unit inputs by weights of unit size, cast to bfloat16: relative error about 2^-9 each."""
    a = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    exact = a.double() @ a.double().T
    with matmul_precision("medium"):
        off = ((a @ a.T).double() - exact).norm() / exact.norm()
    if off < 1e-5:
        pytest.skip("this processor multiplies no bfloat16: all three precisions are one")
    assert 2**-11 < off < 2**-7


def test_a_step_multiplies_at_the_precision_that_is_asked_for(monkeypatch):
    seen = []
    gradient = Pair.gradient
    monkeypatch.setattr(
        Pair, "gradient", lambda *given: seen.append(torch.get_float32_matmul_precision()) or gradient(*given)
    )
    grey = torch.rand(60, 16, generator=torch.Generator().manual_seed(0))
    images = Images(grey, (grey[:20] > 0.5).float(), 4)
    small = {"model": "vae[hidden=8,latent=2]", "data": {"batch": 20}, "watch": {"images": 10, "num_samples": 4}}
    session = Session(Settings.model_validate({**small, "matmul_precision": "medium"}), images)
    session.run(until=2)
    assert set(seen) == {"medium"} and torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(Refusal, match="matmul_precision=high is for float32 alone, not float64"):
        Session(Settings.model_validate({**small, "matmul_precision": "high", "dtype": "float64"}), images)
