from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from benchmarks import plan
from benchmarks.registry import Registry
from benchmarks.specs import SpecError, convert, parse, select
from estimators import Refusal


@pytest.fixture(scope="module")
def registry():
    return Registry()


def write(tmp_path, text):
    path = tmp_path / "suite.toml"
    path.write_text(text)
    return path


def cells(registry, **changes):
    changes = {"problems": ["gaussian-1d"], "estimators": ["iwae"], "num_samples": [2], **changes}
    return plan.cells(plan.configure(None, changes), registry)


def test_every_name_of_the_default_suite_resolves(registry):
    for suite in plan.configure(None, {}).suite:
        for spec in select(suite.problems, registry.problems, "problem"):
            name, raw = parse(spec)
            convert(registry.problems[name], raw)
        for spec in select(suite.estimators, registry.estimators, "estimator"):
            assert plan._allowed(registry, spec, suite.num_samples)[0]


def test_cells_are_the_product_with_canonical_names_and_versions(registry):
    found, left_out = cells(registry, estimators=["dreg", "sumo"], num_samples=[1, 8], seeds=3, replicates=50)
    assert len(found) == 12 and left_out == []
    assert {cell.problem for cell in found} == {"gaussian-1d[loc=1.2,scale=0.8,x=1.0,prior_loc=0.0]"}
    sumo = next(cell for cell in found if cell.estimator.startswith("sumo"))
    assert parse(sumo.estimator)[1] and "num_samples" not in sumo.estimator
    assert sumo.versions.keys() == {"problem", "estimator"}
    assert {(cell.num_samples, cell.seed) for cell in found} == {(k, s) for k in (1, 8) for s in range(3)}


def test_repetitions_are_measured_once(registry):
    problems = ["gaussian-1d", "gaussian-1?", "gaussian-1d[scale=0.8]", "gaussian-1d[scale=8e-1,loc=1.2]"]
    found, _ = cells(registry, problems=problems, estimators=["iwae", "iw*", "!iwae-stl"], num_samples=[2, 2])
    assert len(found) == 1


def test_the_same_cells_in_any_order(registry):
    problems, estimators = ["gaussian-1d", "linear-gaussian"], ["iwae", "dreg"]
    one, _ = cells(registry, problems=problems, estimators=estimators, num_samples=[1, 2])
    other, _ = cells(registry, problems=problems[::-1], estimators=estimators[::-1], num_samples=[2, 1])
    assert {cell.id for cell in one} == {cell.id for cell in other} and one != other


def test_fewer_samples_than_allowed_are_left_out_and_named(registry):
    found, left_out = cells(registry, estimators=["leave-one-out", "iwae"], num_samples=[1, 4])
    assert sorted((cell.estimator, cell.num_samples) for cell in found) == [
        ("iwae", 1),
        ("iwae", 4),
        ("leave-one-out", 4),
    ]
    assert left_out == ["leave-one-out needs num_samples >= 2, not 1"]


def test_where_no_number_of_samples_remains_the_run_is_refused(registry):
    with pytest.raises(Refusal, match="leave-one-out needs num_samples >= 2, not 1"):
        cells(registry, estimators=["iwae", "leave-one-out"], num_samples=[1])


@pytest.mark.parametrize(
    ("device", "part"),
    [("quatsch", "no device 'quatsch'"), ("cuda:x", "no device 'cuda:x'"), ("cuda", "there is: cpu"), ("cuda:7", "")],
)
def test_a_device_that_is_not_there_is_refused(registry, device, part):
    if torch.cuda.is_available() and device == "cuda":
        pytest.skip("there is one")
    with pytest.raises(SpecError, match=f"no device '{device}'") as caught:
        cells(registry, device=device)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"problems": ["gausian-1d"]}, "did you mean 'gaussian-1d'?"),
        ({"estimators": ["no-such"]}, "no estimator 'no-such'"),
        ({"estimators": ["iwae[tail=3]"]}, "iwae has no parameter 'tail'"),
        ({"estimators": ["iwae[num_samples=3]"]}, "by --num-samples"),
        ({"problems": ["gaussian-1d[loc=left]"]}, "gaussian-1d[loc] takes a finite number, not 'left'"),
        ({"problems": ["gaussian-1d[scale=0]"]}, "scale must be positive, not 0.0"),
        ({"problems": ["linear-gaussian[dim=0]"]}, "dim must be at least 1, not 0"),
        ({"replicates": 1}, "replicates: Input should be greater than or equal to 2 (given: 1)"),
        (
            {"dtype": "float16"},
            "dtype: Input should be 'float32' or 'float64'; did you mean 'float64'? (given: 'float16')",
        ),
        ({"matmul_precision": "hgh"}, "'highest', 'high' or 'medium'; did you mean 'high'? (given: 'hgh')"),
        ({"num_samples": [10**30]}, "num_samples.0: Input should be less than or equal to 100000000 (given: 1000"),
        ({"matmul_precision": "medium", "dtype": "float64"}, "for float32 alone, not float64"),
    ],
)
def test_wrong_choices_are_told_in_one_line(registry, changes, part):
    with pytest.raises(SpecError) as caught:
        cells(registry, **changes)
    assert part in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_and_options_that_change_it(tmp_path):
    path = write(tmp_path, '[[suite]]\nproblems = ["gaussian-1d"]\nseeds = 2\n[[suite]]\nproblems = ["rainforth"]\n')
    whole = plan.configure(path, {"replicates": 7, "num_samples": [3]})
    assert [suite.seeds for suite in whole.suite] == [2, 1]
    assert {suite.replicates for suite in whole.suite} == {7}
    assert {tuple(suite.num_samples) for suite in whole.suite} == {(3,)}
    assert [suite.problems for suite in plan.configure(path, {"problems": ["x"]}).suite] == [["x"], ["x"]]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[[suite]\n", "is not TOML: "),
        ("x = 1\nx = 2\n", "is not TOML: Cannot overwrite a value (at line 2"),
        ("", "suite: Field required"),
        ("suite = 3", "suite: Input should be a valid list (given: 3)"),
        ("suite = []", "suite: "),
        ("[[suite]]\n", "suite.0.problems: Field required"),
        ("[[suite]]\nproblems = 'x'\n", "suite.0.problems: Input should be a valid list (given: 'x')"),
        ("[[suite]]\nproblems = []\n", "suite.0.problems: "),
        (
            "[[suite]]\nproblems = ['x']\nreplicate = 3\n",
            "suite.0.replicate: no such setting; did you mean 'replicates'? (given: 3)",
        ),
        ("sute = []", "sute: no such setting; did you mean 'suite'? (given: [])"),
        ("[[suite]]\nproblems = ['x']\nseeds = true\n", "suite.0.seeds: Input should be a valid integer (given: True)"),
        ("[[suite]]\nproblems = ['x']\nreplicates = '2'\n", "replicates: Input should be a valid integer (given: '2')"),
        (
            "[[suite]]\nproblems = ['x']\nnum_samples = [1e3]\n",
            "num_samples.0: Input should be a valid integer (given: 10",
        ),
        ("x = 1" + "0" * 5000, "is not TOML: Exceeds the limit"),
        ("[[suite]]\nproblems = ['x']\nnum_samples = [1, 'many']\n", "suite.0.num_samples.1: "),
        ("[[suite]]\nproblems = ['x']\n[[suite]]\nproblems = ['x']\nseeds = 0\n", "suite.1.seeds: "),
        ("[[suite]]\nproblems = ['x']\nreplicates = 1e99\n", "suite.0.replicates: "),
    ],
)
def test_toml_errors_name_the_place_and_the_value(tmp_path, text, part):
    path = write(tmp_path, text)
    with pytest.raises(SpecError) as caught:
        plan.read_config(path)
    assert part in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(SpecError, match="No such file"):
        plan.read_config(tmp_path / "none.toml")
    with pytest.raises(SpecError, match="Is a directory"):
        plan.read_config(tmp_path)
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(SpecError, match=re.escape("bytes.toml is not TOML")):
        plan.read_config(tmp_path / "bytes.toml")


def test_a_file_without_an_end(monkeypatch):
    monkeypatch.setattr(plan, "LARGEST", 1000)
    with pytest.raises(SpecError, match="/dev/zero is no configuration: it has more than 1000 bytes"):
        plan.read_config(Path("/dev/zero"))
