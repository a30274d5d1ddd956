"""Evaluation of checkpoints and comparison of trainings: numbers beside those of other programs, verbs beside their words."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import safetensors.numpy
import torch
from scipy import stats
from typer.testing import CliRunner

from benchmarks import cli
from benchmarks import data as digits_data
from benchmarks.records import read
from benchmarks.schema import StudyRecord
from benchmarks.trainer import assess, family, findings
from benchmarks.trainer.study import ARMS, Plan, run

PLAN = Plan(("elbo-5", "iwae-5"), seeds=3, close_images=0)


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv(digits_data.CACHE_VARIABLE, str(tmp_path_factory.getbasetemp() / "cache"))


def result(arm, seed, log_p, kl, slope=1.0):
    points = [
        {
            "step": i, "evaluations": 100 * i * (2 if arm == "iwae-5" else 1), "seconds": float(i),
            "processor_seconds": 3.0 * i, "heldout_elbo": -1.0, "heldout_bound": -10 + slope * i,
        }
        for i in range(4)
    ]  # fmt: skip
    likelihood = {"log_p_lower": log_p, "elbo": log_p - kl, "kl_posterior": kl, "khat_median": 0.5}
    return {
        "arm": arm, "seed": seed, "failed": None, "targets": {}, "points": points, "likelihood": likelihood,
        "active_units": [3, 2],
    }  # fmt: skip


def some_results():
    ours, theirs = [-84.0, -83.0, -84.5], [-85.0, -84.2, -85.1]
    made = [result("iwae-5", seed, value, 8.0 + seed) for seed, value in enumerate(ours)]
    return made + [result("elbo-5", seed, value, 6.0, slope=2.0) for seed, value in enumerate(theirs)], ours, theirs


def test_paired_differences_are_those_of_a_t_test():
    results, ours, theirs = some_results()
    found = findings.compare(results, "iwae-5", "elbo-5", "")
    expected = stats.ttest_rel(ours, theirs, alternative="greater")
    assert found["log_p"]["difference"] == pytest.approx(np.mean(np.subtract(ours, theirs)))
    assert found["log_p"]["p_above"] == pytest.approx(expected.pvalue)
    assert found["log_p"]["p_below"] == pytest.approx(1 - expected.pvalue)
    assert found["kl"]["difference"] == pytest.approx(3.0) and found["seeds"] == 3
    assert findings.compare(results, "iwae-5", "sumo", "") is None


def test_equal_cost_is_read_off_the_curves_where_the_cheapest_ends():
    results, *_ = some_results()
    found = findings.of(results, PLAN)
    # elbo-5 ends at 300 evaluations, where iwae-5 is halfway from 200 to 400
    evaluations = found["equal_cost"]["evaluations"]
    assert evaluations["level"] == 300
    assert evaluations["heldout_bound"]["elbo-5"][0] == -4 and evaluations["heldout_bound"]["iwae-5"][0] == -8.5
    assert found["equal_cost"]["processor_seconds"]["heldout_bound"]["iwae-5"][0] == -7
    assert found["curves"]["elbo-5"]["heldout_bound"] == [-10, -8, -6, -4]
    text = findings.markdown(found)
    assert "| iwae-5 | 83.83 +- 0.76 | - | 9.00 +- 1.00 |" in text and "iwae-5 - elbo-5 | +0.93" in text
    assert "5: 86.47 (20), 50: 86.35 (20)" in text and "4,000 for training and not 60,000" in text


def test_bands_and_evaluations_with_more_samples():
    """95 % bands by Student's t over seeds, and the second evaluation where all of a pair have it."""
    results, *_ = some_results()
    for place, each in enumerate(results):
        each["more_samples"] = {"log_p_lower": each["likelihood"]["log_p_lower"] + 0.1 * place}
        for point in each["points"]:
            point["heldout_bound"] += place % 3  # 0, 1, 2 over the seeds of each arm
    found = findings.of(results, PLAN)
    assert found["curves"]["iwae-5"]["heldout_bound_half"] == pytest.approx([4.302653 / math.sqrt(3)] * 4)
    assert found["rows"][1]["log_p_more"] == pytest.approx(found["rows"][1]["log_p"] + 0.1)
    pair = found["pairs"][0]
    assert pair["log_p_more"]["difference"] == pytest.approx(pair["log_p"]["difference"] - 0.3)
    del results[0]["more_samples"]
    assert "log_p_more" not in findings.of(results, PLAN)["pairs"][0]


def test_published_rows_are_those_of_the_papers():
    """Burda et al., table 1, and Luo et al., table 1, typed in again; every number stands in the text."""
    rows = {
        (row["source"], row["method"]): dict(zip(row["k"], row["nll"], strict=True)) for row in findings.PUBLISHED_NLL
    }
    assert rows["Burda et al. 2016", "IWAE"] == {1: 86.76, 5: 85.54, 50: 84.78}
    assert rows["Luo et al. 2020", "SUMO"] == {5: 85.09, 15: 84.71, 50: 84.40}
    text = findings.markdown(findings.of(some_results()[0], PLAN))
    assert all(f"{k}: {nll:.2f}" in text for row in rows.values() for k, nll in row.items())


def test_a_failed_training_is_told_and_left_out():
    results, *_ = some_results()
    results[0] |= {"failed": "diverged"}
    found = findings.of(results, PLAN)
    assert found["failed"] == ["iwae-5, seed 0: diverged"] and found["pairs"][0]["seeds"] == 2


STUDIED = Plan(("elbo-5", "iwae-5"), seeds=2, epochs=1, images=10, num_samples=10, model="vae[hidden=8,latent=3]")


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    """A folder with every training of a small plan, its results, and what was told meanwhile."""
    folder = tmp_path_factory.mktemp("studied")
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.trainer.study.PLANE_MODEL", "vae[hidden=6,latent=2]")
        results = run(STUDIED, folder, 1, lambda *what: told.append(what))
    return folder, results, told


def test_a_study_keeps_what_is_finished(studied, monkeypatch):
    folder, first, told = studied
    cells = [("elbo-5", 0), ("iwae-5", 0), ("elbo-5", 1), ("iwae-5", 1), ("plane elbo-5", 0), ("plane iwae-5", 0)]
    assert [(each["arm"], each["seed"]) for each in first] == STUDIED.cells() == cells
    assert told[0][:2] == (0, 6) and told[-1][:2] == (6, 6)
    # of the first seed: where the bound is lost, and pictures; of two latents the plane as well
    close = first[0]["close"]
    assert {"diagonal", "full-rank"} <= set(close["gaps"]) and close["corrected"]["num_samples"] == 5
    assert first[0]["more_samples"]["num_samples"] == 50 and "close" not in first[4]
    for arm, plane in (("elbo-5", False), ("plane-iwae-5", True)):
        arrays = safetensors.numpy.load_file(folder / "pictures" / f"{arm}.safetensors")
        assert {"original", "sample"} <= set(arrays) and ("traversal" in arrays) == plane
    assert [row["arm"] for row in findings.of(first, STUDIED)["rows"]] == ["elbo-5", "iwae-5"]
    monkeypatch.setattr("benchmarks.trainer.study._one", None)
    assert run(STUDIED, folder, 1, lambda *what: None) == first
    # pairs start from the same parameters and see the same images, so their first points are of one model
    starts = [each["points"][0]["heldout_elbo"] for each in first]
    assert starts[0] == starts[1] and starts[2] == starts[3] != starts[0]
    assert all(
        STUDIED.settings(arm, 0).optimizer.clip == (100.0 if "sumo" in arm or "ml-rr" in arm else 0) for arm in ARMS
    )


def test_the_study_verb_leaves_a_folder_that_a_report_reads(studied, monkeypatch):
    """One command, one folder with a manifest, a checked record and a page of text; what is trained is not trained again."""
    folder, results, _ = studied
    runner = CliRunner()
    monkeypatch.setattr("benchmarks.trainer.study.PLANE_MODEL", "vae[hidden=6,latent=2]")
    words = "study --arm elbo-5 --arm iwae-5 --seeds 2 --epochs 1 --images 10 -K 10 --model vae[hidden=8,latent=3] -j 1"
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    done = runner.invoke(cli.app, [*words.split(), "-o", str(folder)])
    assert done.exit_code == 0 and "| iwae-5 - elbo-5 |" in done.stdout and "q_IW of 5 samples" in done.stdout
    assert len(kept) > len(results) and all(path.stat().st_mtime_ns == when for path, when in kept.items())
    record = read(folder / "study" / "iwae.json", StudyRecord)
    assert record.data["plan"]["seeds"] == 2 and "burda2016" in record.citations
    assert (folder / "findings.md").read_text() in done.stdout
    shown = runner.invoke(cli.app, ["report", str(folder)])
    assert shown.exit_code == 0 and "2 paired seeds" in (folder / "report.html").read_text(encoding="utf-8")


def small():
    made = family("vae[hidden=6,latent=2]")
    parameters = made.start(torch.full((16,), 0.4), torch.Generator().manual_seed(0))
    x = (torch.rand(5, 16, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    return made, parameters, x


def test_bounds_and_jackknife_are_their_formulas():
    made, parameters, x = small()
    log_w = assess.log_weights(made.model_of(x), parameters, 6, torch.Generator().manual_seed(3))
    found = assess.bounds(made, parameters, x, 6, torch.Generator().manual_seed(3))
    values = log_w.logsumexp(0) - math.log(6)
    assert found["heldout_bound"] == pytest.approx(float(values.mean()))
    assert found["heldout_elbo"] == pytest.approx(float(log_w.mean()))
    assert found["heldout_bound_standard_error"] == pytest.approx(float(stats.sem(values.numpy())))
    stream = assess.generator("cpu", "evaluation", 0, "jackknife")
    log_w = assess.log_weights(made.model_of(x), parameters, 4, stream)
    fewer = torch.stack([log_w[[j for j in range(4) if j != i]].logsumexp(0) - math.log(3) for i in range(4)])
    expected = 4 * (log_w.logsumexp(0) - math.log(4)) - 3 * fewer.mean(0)
    found = assess.jackknife(made, parameters, x, 4, 1, seed=0)
    assert found["log_p"] == pytest.approx(float(expected.mean()))


def test_annealing_agrees_with_many_samples_and_lies_between_its_bounds():
    """A small untrained model, whose L_20000 is log p(x) to 0.01: k-hat says so."""
    made, parameters, x = small()
    near = assess.likelihood(made, parameters, x, 20_000, seed=0)
    assert near["khat_median"] < 0.5 and near["kl_posterior"] > 0
    settings = assess.Annealing(steps=30, chains=20)
    found = assess.annealed(made, parameters, x, settings, seed=0)
    assert found["log_p"] == pytest.approx(near["log_p_lower"], abs=0.05)
    both = assess.both_ways(made, parameters, 30, settings, seed=0)
    assert -4.5 * both["gap_standard_error"] < both["gap"] < 0.2
    assert assess.units(made, parameters, x) in ([0], [1], [2])


def test_verbs_train_evaluate_and_refuse(tmp_path):
    runner, out = CliRunner(), tmp_path / "run"
    options = [
        "-K",
        "2",
        "--model",
        "vae[hidden=8,latent=2]",
        "--set",
        "watch.images=10",
        "--epochs",
        "1",
        "-o",
        str(out),
    ]
    done = runner.invoke(cli.app, ["train", *options])
    assert done.exit_code == 0 and "step 40 of 40" in done.output
    done = runner.invoke(
        cli.app, ["evaluate", str(out), "-K", "50", "--images", "20", "--jvi", "1", "--jvi-samples", "4"]
    )
    facts = json.loads(done.stdout)
    assert facts["importance_sampling"]["num_samples"] == 50 and facts["jackknife"]["order"] == 1
    assert facts["checkpoint_step"] == 40 and len(facts["active_units"]) == 1
    for words, said in (
        (["train", "--data", "mnist", "--data-dir", str(tmp_path)], "no train-images-idx3-ubyte.gz or"),
        (["train", "--theta", "iwea", "-o", str(out)], "did you mean 'iwae'"),
        (["train", *options, "-K", "3"], "objective.num_samples 2 there, 3 here"),
        (["train", "--set", "nothing"], "section.key=value"),
        (["evaluate", str(tmp_path)], "checkpoint.safetensors: No such file"),
        (["evaluate", str(out), "--gaps", "diagnal"], "did you mean 'diagonal'"),
        (["study", "elbo"], "no study 'elbo'"),
        (["study", "--arm", "iwae-7"], "did you mean"),
        (["study", "--model", "vea", "-o", str(tmp_path / "none")], "did you mean 'vae'"),
    ):
        refused = runner.invoke(cli.app, words)
        assert refused.exit_code == 2 and said in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr
    assert not (tmp_path / "none").exists()
