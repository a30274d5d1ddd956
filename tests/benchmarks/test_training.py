from __future__ import annotations

import math
from dataclasses import replace
from itertools import islice, pairwise
from threading import Thread

import pytest
import torch

import estimators
from benchmarks import data, training
from benchmarks.problems import Gaussian1D
from benchmarks.problems.vae import VAE, initial_parameters
from benchmarks.schema import TrainingRecord
from benchmarks.training import CHECKPOINTS, Schedule, TrainingError, train

SCHEDULE = Schedule(epochs=1, batch=20, learning_rate=3e-3, seed=0)


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(data.CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        patch.setattr(training, "CURVE_POINTS", 4)
        yield


def model_of(x):
    return VAE(x, hidden=16, latent=4)


@pytest.fixture(scope="module")
def images():
    return torch.from_numpy(data.split()[0])


@pytest.fixture(scope="module")
def held_out():
    return data.binarize(torch.from_numpy(data.split()[1][:300]), torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def start(images):
    return initial_parameters(16, 4, images.mean(0), torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trained(images, held_out, start):
    return train(model_of, estimators.get("reparameterization"), start, images, held_out, SCHEDULE)


def test_training_raises_the_held_out_bounds(trained):
    first, last = trained.points[0], trained.points[-1]
    error = math.hypot(first.heldout_elbo_standard_error, last.heldout_elbo_standard_error)
    assert last.heldout_elbo - first.heldout_elbo > 4.5 * error
    assert last.heldout_iwae - first.heldout_iwae > 10
    assert last.train_elbo - first.train_elbo > 10


def test_curve_is_labelled_and_in_order(trained):
    assert [point.checkpoint for point in trained.points if point.checkpoint] == list(CHECKPOINTS)
    assert (trained.points[0].step, trained.points[-1].step, trained.points[-1].epoch) == (0, 200, 1.0)
    assert [point.step for point in trained.points if point.checkpoint == "middle"] == [20]
    for before, after in pairwise(trained.points):
        assert before.step < after.step and before.seconds <= after.seconds
    assert trained.points[0].seconds < 0.1  # evaluation is not training


def test_start_is_what_came_in_and_is_left_alone(trained, start, images):
    again = initial_parameters(16, 4, images.mean(0), torch.Generator().manual_seed(0))
    for block, leaves in start.items():
        for name, leaf in leaves.items():
            assert torch.equal(leaf, again[block][name])
            assert torch.equal(leaf, trained.checkpoints["start"][block][name])
            assert not torch.equal(leaf, trained.checkpoints["middle"][block][name])


def test_same_seed_same_bits(trained, images, held_out, start):
    seen = []
    twice = train(
        model_of, estimators.get("reparameterization"), start, images, held_out, SCHEDULE, lambda *a: seen.append(a)
    )
    for block, leaves in trained.checkpoints["converged"].items():
        assert all(torch.equal(leaf, twice.checkpoints["converged"][block][name]) for name, leaf in leaves.items())
    untimed = [[replace_seconds(point) for point in one.points] for one in (trained, twice)]
    assert untimed[0] == untimed[1]
    assert [step for step, _, _ in seen] == list(range(2, 201, 2)) and seen[-1][2] > seen[0][2]


def replace_seconds(point):
    return point.model_copy(update={"seconds": 0.0})


@pytest.mark.parametrize(
    ("name", "num_samples"), [("iwae", 3), ("dreg", 3), ("leave-one-out", 2), ("sumo", 1), ("reweighted-wake-sleep", 3)]
)
def test_any_registered_estimator_trains(name, num_samples, images, held_out, start):
    estimator = estimators.get(name, num_samples=num_samples)
    trained = train(model_of, estimator, start, images[:100], held_out[:20], SCHEDULE)
    for block, leaves in trained.checkpoints["converged"].items():
        for leaf, moved in leaves.items():
            assert bool(moved.isfinite().all()) and not torch.equal(moved, start[block][leaf])


def test_first_step_is_adams_in_ascent_direction(images, held_out, start):
    one = replace(SCHEDULE, batch=100)
    estimator = estimators.get("reparameterization")
    trained = train(model_of, estimator, start, images[:100], held_out[:20], one)
    # What the documented streams give: one minibatch of all images, one noise.
    order = torch.randperm(100, generator=training.generator("cpu", "training", 0, "order"))
    x = data.binarize(images[:100][order], training.generator("cpu", "training", 0, "pixels"))
    noise = torch.randn(1, 100, 4, generator=training.generator("cpu", "training", 0, "noise"))
    leaves = {b: {k: v.clone().requires_grad_() for k, v in start[b].items()} for b in start}
    guide = model_of(x).guide(leaves["phi"])
    z = guide.transform(noise)
    (model_of(x).log_joint(leaves["theta"], z) - guide.log_prob(z)).mean().backward()
    for block, moved in trained.checkpoints["converged"].items():
        for name, leaf in moved.items():
            slope = leaves[block][name].grad
            expected = start[block][name] + 3e-3 * slope / (slope.abs() + 1e-4)
            torch.testing.assert_close(leaf, expected, rtol=1e-4, atol=2e-6)


def test_minibatches_pass_over_every_image_once():
    images = torch.eye(10)  # already binary, so binarisation changes nothing
    batches = list(islice(training._minibatches(images, replace(SCHEDULE, batch=3)), 6))
    for epoch in (batches[:3], batches[3:]):
        rows = torch.cat(epoch).argmax(1).tolist()
        assert len(set(rows)) == 9
    assert not torch.equal(torch.cat(batches[:3]), torch.cat(batches[3:]))


def test_schedule():
    schedule = replace(SCHEDULE, epochs=3, batch=30, learning_rate=0.5)
    assert schedule.steps(100) == 9
    assert [schedule.rate(step, 100) for step in (0, 50, 75)] == [0.5, 0.5, 0.25]
    assert 0 < schedule.rate(99, 100) < 0.02


def test_log_mean_weight_nears_log_marginal():
    problem = Gaussian1D(loc=0.4, scale=0.8, x=1.0)
    stream = torch.Generator().manual_seed(0)
    estimate = training.log_mean_weight(problem, problem.parameters, 20_000, stream)
    # p(x) = N(0, 2); Var(w / p(x)) of this guide is 0.05, so the estimate's standard deviation is 0.0016.
    assert abs(estimate.item() - torch.distributions.Normal(0.0, 2**0.5).log_prob(torch.tensor(1.0)).item()) < 0.01


def test_divergence_is_told_in_one_line(images, held_out, start):
    wild = replace(SCHEDULE, learning_rate=1e30)
    with pytest.raises(TrainingError, match="diverged before step") as caught:
        train(model_of, estimators.get("reparameterization"), start, images[:200], held_out[:20], wild)
    assert "\n" not in str(caught.value)


def test_threads_are_given_back(images, held_out, start):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert training.training_threads(100) == 1 and training.training_threads(5000) == 2
        seen = []
        train(
            model_of,
            estimators.get("reparameterization"),
            start,
            images[:50],
            held_out[:20],
            SCHEDULE,
            lambda *_: seen.append(torch.get_num_threads()),
        )
        assert set(seen) == {1} and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.fixture
def record(trained):
    return TrainingRecord(id="x", problem="p", settings={"epochs": 1}, parameters=3, points=trained.points)


def test_store_and_load(tmp_path, trained, record):
    path = tmp_path / "deeper" / "x.safetensors"
    assert training.load(path, "x", trained.checkpoints["start"]) is None
    training.store(path, record, trained.checkpoints)
    kept, checkpoints = training.load(path, "x", trained.checkpoints["start"])
    assert kept == record and list(checkpoints) == list(CHECKPOINTS)
    for name in CHECKPOINTS:
        for block, leaves in trained.checkpoints[name].items():
            assert leaves.keys() == checkpoints[name][block].keys()
            assert all(torch.equal(leaf, checkpoints[name][block][key]) for key, leaf in leaves.items())
    assert training.load(path, "y", trained.checkpoints["start"]) is None


def test_writers_at_once_do_no_harm(tmp_path, trained, record):
    path = tmp_path / "x.safetensors"
    training.store(path, record, trained.checkpoints)

    def write():
        for _ in range(10):
            training.store(path, record, trained.checkpoints)

    writers = [Thread(target=write) for _ in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert training.load(path, "x", trained.checkpoints["start"]) is not None
    assert [each.name for each in tmp_path.iterdir()] == ["x.safetensors"]
