from __future__ import annotations

import math
import shutil

import pytest
import safetensors
import safetensors.torch
import torch
from torch import distributions as td
from torch.func import vmap
from torch.nn.functional import linear

import estimators
from benchmarks import data, training
from benchmarks.problems import REGISTRY, DigitsVAE, digits
from benchmarks.problems.vae import VAE
from benchmarks.specs import SpecError
from estimators import replicates

TINY = {"hidden": 16, "latent": 4, "epochs": 1, "points": 5}


@pytest.fixture(scope="module", autouse=True)
def _folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(data.CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        patch.setattr(training, "CURVE_POINTS", 2)
        yield


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv(data.CACHE_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.fixture
def trainings(monkeypatch):
    """Counts how often the network is trained."""
    calls = []

    def counted(*args):
        calls.append(args)
        return training.train(*args)

    monkeypatch.setattr(digits, "train", counted)
    return calls


@pytest.fixture(scope="module")
def problem() -> DigitsVAE:
    return DigitsVAE(**TINY, dtype="float64")


def decode(theta, z):
    features = torch.tanh(linear(z, theta["first.weight"], theta["first.bias"]))
    features = torch.tanh(linear(features, theta["second.weight"], theta["second.bias"]))
    return linear(features, theta["logits.weight"], theta["logits.bias"])


def encode(phi, x):
    features = torch.tanh(linear(x, phi["first.weight"], phi["first.bias"]))
    features = torch.tanh(linear(features, phi["second.weight"], phi["second.bias"]))
    loc = linear(features, phi["loc.weight"], phi["loc.bias"])
    return td.Normal(loc, linear(features, phi["log_scale.weight"], phi["log_scale.bias"]).exp())


def log_joint(theta, x, z):
    return td.Normal(0.0, 1.0).log_prob(z).sum(-1) + td.Bernoulli(logits=decode(theta, z)).log_prob(x).sum(-1)


def draw(problem, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((*shape, problem.points, problem.latent), generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_densities_are_those_of_torch_distributions(problem, shape):
    theta, phi = problem.parameters["theta"], problem.parameters["phi"]
    z, q = draw(problem, *shape), encode(phi, problem.data)
    joint = problem.log_joint(theta, z)
    assert joint.shape == (*shape, problem.points)
    torch.testing.assert_close(joint, log_joint(theta, problem.data, z))
    torch.testing.assert_close(problem.prior(theta).log_prob(z) + problem.log_likelihood(theta, z), joint)
    torch.testing.assert_close(problem.guide(phi).log_prob(z), q.log_prob(z).sum(-1))
    torch.testing.assert_close(problem.guide(phi).transform(z), q.loc + q.scale * z)


def test_log_likelihood_is_stable_for_extreme_logits():
    x = torch.tensor([[0.0, 1.0]])
    model = VAE(x, hidden=2, latent=1)
    theta = {name: torch.zeros(leaf.shape) for name, leaf in model._decoder.named_parameters()}
    theta["logits.bias"] = torch.tensor([-1e4, 1e4])
    assert model.log_likelihood(theta, torch.zeros(1, 1)).item() == 0.0
    theta["logits.bias"] = torch.tensor([1e4, -1e4])
    assert model.log_likelihood(theta, torch.zeros(1, 1)).item() == -2e4


def log_weights(problem, blocks, noise):
    q = encode(blocks["phi"], problem.data)
    z = q.loc + q.scale * noise
    return log_joint(blocks["theta"], problem.data, z) - q.log_prob(z).sum(-1)


def with_analytic_kl(problem, blocks, noise):
    q = encode(blocks["phi"], problem.data)
    likelihood = td.Bernoulli(logits=decode(blocks["theta"], q.loc + q.scale * noise)).log_prob(problem.data).sum(-1)
    return (likelihood.mean(0) - td.kl_divergence(q, td.Normal(0.0, 1.0)).sum(-1)).mean()


OBJECTIVES = {
    "reparameterization": lambda *args: log_weights(*args).mean(),
    "iwae": lambda *args: (log_weights(*args).logsumexp(0) - math.log(3)).mean(),
    "reparameterization-analytic-kl": with_analytic_kl,
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_vmapped_gradient_is_plain_autograd_of_the_objective(problem, name):
    estimator = estimators.get(name, num_samples=3)
    noise = draw(problem, 4, 3, seed=1)
    ours = vmap(lambda one: estimator.gradient(problem, problem.parameters, one))(noise)
    for row in range(4):
        leaves = {
            b: {k: v.clone().requires_grad_() for k, v in problem.parameters[b].items()} for b in ("theta", "phi")
        }
        value = OBJECTIVES[name](problem, leaves, noise[row])
        value.backward()
        torch.testing.assert_close(ours.value[row], value.detach())
        for block, slopes in (("theta", ours.theta), ("phi", ours.phi)):
            for leaf, slope in slopes.items():
                torch.testing.assert_close(slope[row], leaves[block][leaf].grad)


# torch's own forward-mode module uses what torch deprecates
@pytest.mark.filterwarnings("ignore:`torch.jit.script`:DeprecationWarning")
@pytest.mark.parametrize("name", estimators.names())
def test_every_estimator_works_on_it(name):
    problem = DigitsVAE(**TINY, checkpoint="start")
    estimator = estimators.get(name, num_samples=estimators.REGISTRY[name].usual_num_samples())
    if estimator.refuses(problem):
        assert estimator.needs - problem.offers  # such as a discrete guide, or data of the model's own
        return
    rows = replicates.stacked(estimator, problem, problem.parameters, 3, torch.Generator().manual_seed(0))
    assert rows.dtype == torch.float32 and bool(rows.isfinite().all()) and rows[0].norm() > 0


def test_data_are_held_out_digits_binarised_once(problem):
    assert problem.data.shape == (5, 784) and set(problem.data.unique().tolist()) == {0.0, 1.0}
    other = DigitsVAE(**{**TINY, "points": 1000}, seed=7)
    assert other.data.dtype == torch.float32
    assert torch.equal(other.data[:5].double(), problem.data)
    grey = torch.from_numpy(data.split()[1])
    assert abs(other.data.mean() - grey.mean()) < 4.5 * (grey * (1 - grey)).sum().sqrt() / grey.numel()


def test_start_is_untrained_and_costs_no_training(empty_cache, trainings):
    start = DigitsVAE(**TINY, checkpoint="start")
    start.prepare()
    theta, phi = start.parameters["theta"], start.parameters["phi"]
    assert not trainings and start.training_record() is None
    for leaf in (phi["first.weight"], theta["second.weight"]):
        limit = math.sqrt(6 / sum(leaf.shape))
        assert 0.9 * limit < leaf.abs().max() <= limit
    assert not any(leaf.any() for name, leaf in {**phi, **theta}.items() if "bias" in name and name != "logits.bias")
    mean = torch.from_numpy(data.split()[0]).mean(0).clamp(0.001, 0.999)
    torch.testing.assert_close(theta["logits.bias"].sigmoid(), mean)
    DigitsVAE(**TINY).prepare()
    record, kept = training.load(start.training_file, start.training_id, start.parameters)
    assert start.training_record() == record
    assert all(torch.equal(kept["start"]["theta"][name], leaf) for name, leaf in theta.items())


def test_one_training_serves_all_checkpoints_points_and_precisions(empty_cache, trainings):
    seen = []
    converged = DigitsVAE(**TINY)
    converged.prepare(lambda *step: seen.append(step))
    assert seen[-1][:2] == (40, 40)
    middle = DigitsVAE(**{**TINY, "points": 2}, checkpoint="middle", dtype="float64")
    weight = middle.parameters["theta"]["first.weight"]
    assert len(trainings) == 1 and weight.dtype == torch.float64
    assert torch.equal(weight, weight.float().double())
    assert not torch.equal(weight.float(), converged.parameters["theta"]["first.weight"])
    record = converged.training_record()
    assert record == middle.training_record() and len(trainings) == 1
    assert record.id in str(converged.training_file) and "checkpoint" not in record.problem
    assert record.parameters == sum(v.numel() for b in converged.parameters.values() for v in b.values())
    assert [p.checkpoint for p in record.points if p.checkpoint] == ["start", "middle", "converged"]


def test_same_settings_give_the_same_bits_and_leave_the_global_generator_alone(tmp_path, monkeypatch):
    def trained(folder, **settings):
        monkeypatch.setenv(data.CACHE_VARIABLE, str(tmp_path / folder))
        return torch.cat([v.flatten() for v in DigitsVAE(**TINY, **settings).parameters["theta"].values()])

    before = torch.random.get_rng_state()
    first = trained("a")
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(1)
    assert torch.equal(first, trained("b"))
    assert not torch.equal(first, trained("b", seed=1))


def _flip(path):
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def _embellish(path):
    with safetensors.safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert '"heldout_elbo":-' in metadata["text"]
    metadata["text"] = metadata["text"].replace('"heldout_elbo":-', '"heldout_elbo":-1')
    path.write_bytes(safetensors.torch.save(safetensors.torch.load(path.read_bytes()), metadata))


def _exchange(path):
    other = DigitsVAE(**TINY, seed=5)
    other.prepare()
    shutil.copy(other.training_file, path)


@pytest.mark.parametrize(
    "spoil",
    [_flip, _embellish, _exchange, lambda p: p.write_bytes(p.read_bytes()[:-100]), lambda p: p.write_bytes(b"")],
    ids=["one bit", "another curve", "another training", "truncated", "empty"],
)
def test_a_spoilt_file_is_trained_again(empty_cache, trainings, spoil):
    problem = DigitsVAE(**TINY)
    problem.prepare()
    _, good = training.load(problem.training_file, problem.training_id, problem._start())
    spoil(problem.training_file)
    count = len(trainings)
    problem.prepare()
    assert len(trainings) == count + 1
    _, again = training.load(problem.training_file, problem.training_id, problem._start())
    for name, leaf in good["converged"]["phi"].items():
        assert torch.equal(leaf, again["converged"]["phi"][name])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"hidden": 0}, "hidden must be at least 1"),
        ({"latent": 0}, "latent must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"batch": 4001}, "batch must be at most 4000"),
        ({"points": 1001}, "points must be at most 1000"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"seed": -1}, "seed must not be negative"),
        ({"checkpoint": "midle"}, "did you mean 'middle'"),
        ({"objective": "iwea"}, "did you mean 'iwae'"),
        ({"objective": "leave-one-out"}, "num_samples >= 2"),
        ({"train_num_samples": 0}, "num_samples >= 1"),
    ],
)
def test_bad_settings_are_refused_in_one_line(settings, words):
    with pytest.raises(SpecError, match=words) as caught:
        DigitsVAE(**settings)
    assert str(caught.value).startswith("digits-vae: ") and "\n" not in str(caught.value)


def test_registered_and_spelled_out(problem):
    assert REGISTRY["digits-vae"] is DigitsVAE
    assert DigitsVAE.dtype == "float32"
    assert problem.spec == (
        "digits-vae[hidden=16,latent=4,epochs=1,batch=100,learning_rate=0.003,objective=reparameterization,"
        "train_num_samples=1,seed=0,checkpoint=converged,points=5]"
    )
