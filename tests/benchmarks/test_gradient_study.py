"""Signal, Monte Carlo noise and minibatch noise of a step's gradient, beside quadrature over noise and every minibatch."""

from __future__ import annotations

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch.func import jacrev, vmap
from typer.testing import CliRunner

import estimators
from benchmarks import cli, sizes
from benchmarks import data as digits_data
from benchmarks.records import read
from benchmarks.registry import Registry
from benchmarks.schema import StudyRecord
from benchmarks.trainer import gradients
from benchmarks.trainer.families import family
from benchmarks.trainer.gradient_study import GradientPlan, run
from benchmarks.trainer.gradients import Design, split

POOL = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])


@pytest.fixture(autouse=True)
def _cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv(digits_data.CACHE_VARIABLE, str(tmp_path_factory.getbasetemp() / "cache"))


def small():
    """One latent, three pixels, weights of order one in double precision."""
    made = family("vae[hidden=2,latent=1]")
    g = torch.Generator().manual_seed(0)
    start = made.start(POOL.double().mean(0), g)
    moved = {
        block: {name: leaf + 0.5 * torch.randn(leaf.shape, generator=g, dtype=leaf.dtype) for name, leaf in b.items()}
        for block, b in start.items()
    }
    return made, moved


def layers_of(block, h):
    for name in ("first", "second"):
        h = torch.tanh(h @ block[f"{name}.weight"].T + block[f"{name}.bias"])
    return h


def moments_of(e, x):
    h = layers_of(e, x)
    return (h @ e[f"{name}.weight"].T + e[f"{name}.bias"] for name in ("loc", "log_scale"))


def log_weight(parameters, held, x, eps):
    """log p(x, z) - log q-bar(z | x) at z = loc + scale eps, q-bar with parameters ``held``; mean over two images."""
    d = parameters["theta"]
    loc, log_scale = moments_of(parameters["phi"], x)
    z = loc + log_scale.exp() * eps[:, None]
    logits = layers_of(d, z) @ d["logits.weight"].T + d["logits.bias"]
    log_p = (x * logits - torch.nn.functional.softplus(logits)).sum(-1) - 0.5 * (z**2).sum(-1)
    centre, width = moments_of(held["phi"], x)
    return (log_p + (0.5 * ((z - centre) / width.exp()) ** 2 + width).sum(-1)).mean()


def exact(parameters):
    """The mean gradient, and by layer: Monte Carlo variance, minibatch variance, norm of the mean gradient, and the mean cosine with it."""
    nodes = np.linspace(-7, 7, 70)  # the trapezoidal rule: a cosine jumps where a gradient changes its sign, at zero
    weights = np.exp(-0.5 * nodes**2) / np.exp(-0.5 * nodes**2).sum()
    eps = torch.tensor(list(itertools.product(nodes, nodes)))
    mass = torch.tensor([a * b for a, b in itertools.product(weights, weights)])
    flat, many = [], list(itertools.combinations(range(4), 2))
    for rows in many:
        x = POOL[list(rows)].double()
        slopes = vmap(lambda one, x=x: jacrev(lambda p: log_weight(p, parameters, x, one))(parameters))(eps)
        flat.append(torch.cat([slopes[b][n].reshape(len(eps), -1) for b in ("theta", "phi") for n in parameters[b]], 1))
    found = {}
    whole = torch.stack([mass @ each for each in flat]).mean(0)
    for name, place in gradients.layers(parameters).items():
        means = [mass @ each[:, place] for each in flat]
        carlo = [mass @ (each[:, place] - mean).square().sum(1) for each, mean in zip(flat, means, strict=True)]
        overall = torch.stack(means).mean(0)
        between = torch.stack([(mean - overall).square().sum() for mean in means]).mean()
        angle = [mass @ ((each[:, place] @ whole[place]) / each[:, place].norm(dim=1)) for each in flat]
        found[name] = {
            "monte_carlo": float(torch.stack(carlo).mean()),
            "minibatch": float(between),
            "signal": float(overall.norm()),
            "cosine": float(torch.stack(angle).mean() / whole[place].norm()),
        }
    return whole, found


def test_the_split_is_that_of_quadrature_over_noise_and_all_minibatches():
    """Nine layers and blocks, four numbers each, within 4.5 standard errors (2e-4 together); the errors are small."""
    made, parameters = small()
    reference, truth = exact(parameters)
    estimator = estimators.get("sticking-the-landing", num_samples=1)
    references = {block: (reference, dict.fromkeys(truth, 1.0)) for block in ("theta", "phi")}
    design = Design(batch=2, minibatches=400, repeats=3)
    found = gradients.measured(made, parameters, POOL.double(), estimator, design, references)
    assert [row["layer"] for row in found["layers"]] == list(truth)
    assert (found["evaluations"], found["minibatches"]) == (2, 400)
    for row in found["layers"]:
        for name, value in truth[row["layer"]].items():
            half = (row[f"{name}_high"] - row[f"{name}_low"]) / 2
            assert abs(row[name] - value) < 4.5 / 1.96 * half, (row["layer"], name)
            # of minibatch noise, as a part of all noise: what is left of it after the other has been taken away
            whole = value + (truth[row["layer"]]["monte_carlo"] if name == "minibatch" else 0.0)
            assert half < 0.3 * whole, (row["layer"], name)
    both = next(row for row in found["layers"] if row["layer"] == "phi")
    assert both["variance"] == pytest.approx(both["monte_carlo"] + both["minibatch"])
    assert both["snr"] == pytest.approx(both["signal"] / math.sqrt(both["variance"]))


def test_intervals_are_those_of_a_jackknife_done_by_leaving_out():
    g = np.random.default_rng(0)
    means, within = g.normal(1, 1, (9, 4)), g.random(9)

    def numbers(means, within):
        spread = ((means - means.mean(0)) ** 2).sum() / (len(means) - 1)
        carlo, batch = within.mean(), spread - within.mean() / 3
        return {"monte_carlo": carlo, "minibatch": batch, "variance": carlo + batch}

    found = split(torch.tensor(means), torch.tensor(within), 3)
    left = [numbers(np.delete(means, i, 0), np.delete(within, i)) for i in range(9)]
    for name, value in numbers(means, within).items():
        others = np.array([each[name] for each in left])
        half = 2.306004 * math.sqrt(8 / 9 * ((others - others.mean()) ** 2).sum())  # t quantile of eight degrees
        assert found[name] == pytest.approx(value)
        limits = (found[f"{name}_low"], found[f"{name}_high"])
        factor = math.exp(half / value)
        expected = (value - half, value + half) if name == "minibatch" else (value / factor, value * factor)
        assert limits == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("size", [0.0, 1.0, 30.0])
def test_the_interval_of_the_signal_is_that_of_a_size_seen_with_the_noise_of_a_mean(size):
    g = np.random.default_rng(0)
    means = g.normal(size, [0.5, 1, 2, 3], (9, 4))
    found = split(torch.tensor(means), torch.tensor(g.random(9)), 3)
    mean, covariance = means.mean(0), np.cov(means.T)
    squares = 64 / 70 * (np.trace(covariance @ covariance) - np.trace(covariance) ** 2 / 8)  # of the true one, unbiased
    centred = torch.tensor(means - mean)
    large = sizes.large_variance(centred @ centred.T, 8, squares)
    of_mean = mean @ mean, np.trace(covariance) / 9, squares / 81
    along = sizes.variance_along(*of_mean, mean @ covariance @ mean / (mean @ mean) / 9, large / 9)
    expected = sizes.interval(*of_mean, along * (2.306004 / 1.959964) ** 2)
    assert (found["signal_low"], found["signal_high"]) == pytest.approx(expected, rel=1e-5)
    assert found["signal"] == pytest.approx(math.sqrt(max(0.0, mean @ mean - np.trace(covariance) / 9)))
    assert found["snr_low"] <= found["snr"] <= found["snr_high"]
    assert (found["snr_low"] == 0) == (found["signal_low"] == 0) == (size == 0)


def test_where_nothing_varies_the_signal_is_known():
    found = split(torch.full((9, 2), 3.0).double(), torch.zeros(9).double(), 2)
    assert found["signal"] == found["signal_low"] == found["signal_high"] == pytest.approx(math.sqrt(18))
    assert found["snr"] is found["snr_low"] is found["snr_high"] is None


def test_a_long_run_says_how_far_it_is_from_the_truth():
    """Its own estimate of its cosine with the true gradient, beside the true cosine, for each layer."""
    made, parameters = small()
    whole, truth = exact(parameters)
    quiet = estimators.get("sticking-the-landing", num_samples=4)
    found, quality = gradients.long_run(made, parameters, POOL.double(), quiet, Design(batch=2, minibatches=60))
    for name, place in gradients.layers(parameters).items():
        cosine = float(torch.cosine_similarity(found[place], whole[place], 0))
        assert cosine > 0.9 and abs(quality[name] - cosine) < 0.1, name
    assert set(quality) == set(truth)


def test_references_are_of_the_same_target():
    made, _ = small()
    model, registry = made.model_of(POOL.double()), Registry()
    for name, block, expected in (
        ("score-function", "theta", ("sticking-the-landing", 16)),
        ("vimco", "phi", ("dreg", 3)),
        ("reweighted-wake-sleep", "theta", ("dreg", 3)),
        ("reweighted-wake-sleep", "phi", ("reweighted-wake-sleep", 3)),
    ):
        found = gradients.reference_of(registry.estimator(name, 3), block, model, registry)
        assert (found.name, found.num_samples) == expected


def test_layers_are_weights_and_biases_of_one_name():
    _, parameters = small()
    places = gradients.layers(parameters)
    sizes = {name: place.stop - place.start for name, place in places.items()}
    assert sizes["phi/first"] == 3 * 2 + 2 and sizes["theta/logits"] == 2 * 3 + 3
    assert sizes["theta"] == sum(size for name, size in sizes.items() if name.startswith("theta/"))


def test_states_are_trained_once_and_measurements_kept(tmp_path, monkeypatch):
    plan = GradientPlan(
        ("iwae", "sticking-the-landing", "vimco"),
        (1, 2),
        Design(minibatches=4),
        epochs=2,
        model="vae[hidden=4,latent=2]",
    )
    told = []
    found = run(plan, tmp_path, 1, lambda *what: told.append(what))
    assert told[0] == (0, 20, "") and told[-1][:2] == (20, 20)
    by = {each["state"]: each for each in found["states"]}
    assert list(by) == ["initial", "early", "converged", "over-trained", "collapsed"]
    assert by["initial"]["trained"].startswith("reparameterization, K = 1, 0 of 80 steps")
    assert by["over-trained"]["trained"].endswith("400 of 400 steps, constant rate")
    assert {(each["estimator"], each["num_samples"]) for each in found["refused"]} == {("vimco", 1)}
    assert len(found["rows"]) == 5 * (2 + 2 + 1) * 9
    monkeypatch.setattr("benchmarks.trainer.gradient_study._measure", None)
    assert run(plan, tmp_path, 1, lambda *what: None)["rows"] == found["rows"]


def test_the_verb_measures_checkpoints_and_refuses_in_one_line(tmp_path):
    runner, where = CliRunner(), tmp_path / "trained"
    options = ["--model", "vae[hidden=4,latent=2]", "--epochs", "1", "--set", "watch.images=10", "-o", str(where)]
    assert runner.invoke(cli.app, ["train", *options]).exit_code == 0
    out = tmp_path / "out"
    words = ["gradients", f"mine={where}", "-e", "iwae", "-e", "dreg", "-K", "2", "--minibatches", "4", "-j", "1"]
    done = runner.invoke(cli.app, [*words, "-o", str(out)])
    assert done.exit_code == 0 and "mine: iwae, K = 5, 40 of 40 steps" in done.output
    record = read(out / "study" / "gradients.json", StudyRecord)
    assert record.kind == "gradients" and "tucker2019" in record.citations
    assert {row["estimator"] for row in record.data["rows"]} == {"iwae", "dreg"}
    assert json.loads((out / "manifest.json").read_text())["settings"]["study"] == "gradients"
    for wrong, said in (
        (["-e", "iwea"], "did you mean 'iwae'"),
        (["-K", "2,x"], "whole numbers such as 1,8,64"),
        (["elsewhere"], "NAME=PATH"),
        ([f"a={tmp_path}"], "cannot read"),
        (["--batch", "5000"], "more than the 4000"),
        (["--model", "vea"], "vae"),
    ):
        refused = runner.invoke(cli.app, ["gradients", *wrong, "-o", str(tmp_path / "none")])
        assert refused.exit_code == 2 and said in refused.stderr and refused.stderr.count("\n") == 1, refused.stderr
    assert not (tmp_path / "none").exists()
