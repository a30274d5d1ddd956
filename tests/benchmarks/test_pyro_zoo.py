"""Programs in the manner of Pyro's own examples: what runs has Pyro's densities, and what cannot run says why in one line."""

from __future__ import annotations

from pathlib import Path

import pyro
import pytest
import torch

from benchmarks.check import check
from benchmarks.problems import PyroProblem
from benchmarks.registry import Registry
from benchmarks.specs import SpecError
from estimators import Target
from estimators.replicates import stacked

FILE = str(Path(__file__).parents[1] / "support" / "pyro_zoo.py")
REGISTRY = Registry()


def program(model, q, args="points", **settings):
    guide = q if q.startswith("Auto") else f"{FILE}:{q}"
    return PyroProblem(model=f"{FILE}:{model}", q=guide, args=f"{FILE}:{args}" if args else "", **settings)


RUNNING = {
    "nested plates, subset, AutoNormal": lambda: program("nested", "AutoNormal", "grid"),
    "VAE on minibatches": lambda: program("minibatch_vae", "minibatch_vae_guide", "pixels"),
    "one module for model and guide": lambda: program("whole.model", "whole.guide", "pixels"),
    "Dirichlet mixture of several discrete sites": lambda: program("mixture", "mixture_guide"),
    "hidden Markov": lambda: program("hidden_markov", "hidden_markov_guide"),
    "laws": lambda: program("laws", "laws_guide"),
    "scale, mask, factor, deterministic, obs_mask": lambda: program("handled", "handled_guide"),
    "handlers, AutoMultivariateNormal": lambda: program("handled", "AutoMultivariateNormal"),
    "a class of guide, lower_cholesky": lambda: program("plane", "PlaneGuide"),
    "a method, AutoLowRankMultivariateNormal": lambda: program("holder.model", "AutoLowRankMultivariateNormal"),
    "AutoIAFNormal": lambda: program("plane", "AutoIAFNormal"),
    "random first guesses, no path": lambda: program("plain", "guessing_guide"),
    "topics, Multinomial": lambda: program("topics", "AutoDiagonalNormal", "words"),
}


@pytest.mark.parametrize("make", RUNNING.values(), ids=RUNNING)
def test_densities_are_pyros_own(make):
    """Draw by draw: Pyro's traces, given the same values, with nothing substituted and nothing vectorised."""
    problem = make()
    own, z = problem.program, problem._probe(3)
    theta, phi = (problem.parameters[block] for block in ("theta", "phi"))
    log_p, log_q = problem.log_joint(theta, z), problem.guide(phi).log_prob(z)
    assert set(theta) == set(own.leaves["theta"]) and len({id(leaf) for leaf in own.leaves["phi"].values()}) == len(phi)
    for row in range(3):
        given = {}
        for name, value in z.items():
            whole = own.sites[name].subset or own.sites[name].kind == "Categorical"
            given[name] = value[row].long() if whole else value[row]
        with own.scope(), pyro.poutine.block():
            for function, found in ((own.model, log_p), (own.guide, log_q)):

                class Fixed(pyro.poutine.messenger.Messenger):
                    def _pyro_sample(self, msg, given=given):
                        if msg["name"] in given and not msg["is_observed"]:
                            msg["value"], msg["done"] = given[msg["name"]], True

                with Fixed():
                    trace = pyro.poutine.trace(function).get_trace(*own.args, **own.kwargs)
                torch.testing.assert_close(found[row], trace.log_prob_sum().detach(), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(("model", "q", "args", "words"), [
    ("handled", "handled_guide", "points", "guide site 'mu' counts 0.3 times"),
    ("minibatch_vae", "minibatch_vae_guide", "pixels", "guide site 'z' counts 2.5 times"),
])  # fmt: skip
def test_the_derivative_of_a_scaled_log_q_is_not_taken_for_a_score(model, q, args, words):
    """Leave-one-out would be that factor times its mean, and doubly reparameterised gradients and VIMCO of no bound."""
    problem = program(model, q, args)
    for name in ("leave-one-out", "score-function", "dreg", "vimco", "iwae"):
        assert words in (REGISTRY.estimator(name, 2).refuses(problem) or ""), name
    for name in ("reparameterization", "pyro-trace-elbo"):
        assert REGISTRY.estimator(name, 2).refuses(problem) is None
    if model == "minibatch_vae":
        each = program(model, q, args, plate="data")
        assert REGISTRY.estimator("leave-one-out", 2).refuses(each) is None


def test_what_both_register_belongs_to_the_one_that_uses_it():
    problem = RUNNING["one module for model and guide"]()
    blocks = problem.parameters
    assert {name.removeprefix("whole$$$").partition(".")[0] for name in blocks["theta"]} == {"decoder", "start", "idle"}
    assert {name.removeprefix("whole$$$").partition(".")[0] for name in blocks["phi"]} == {"encoder"}
    assert problem.cuts == []  # though nothing vectorises nn.RNN over its parameters


def test_a_path_that_the_guide_renounces_is_not_taken():
    """As Pyro does not; what draws it is the same law, so score functions have the same mean, draw by draw not."""
    problem = program("plain", "guessing_guide")
    noise = problem.guide(problem.parameters["phi"]).noise((3,), torch.Generator().manual_seed(0))
    slope = torch.func.grad(lambda phi: problem.guide(phi).transform(noise)["mu"].sum())(problem.parameters["phi"])
    assert not any(bool(leaf.any()) for leaf in slope.values())
    assert "guide site 'mu' (Normal) is not" in (REGISTRY.estimator("reparameterization", 2).refuses(problem) or "")
    assert REGISTRY.estimator("pyro-trace-elbo", 2).beside(problem) == "score-function"


@pytest.mark.parametrize("make", [RUNNING["VAE on minibatches"], RUNNING["topics, Multinomial"]], ids=["VAE", "topics"])
def test_every_estimator_that_applies_gives_finite_numbers(make):
    problem = make()
    for name in ("reparameterization", "leave-one-out", "vimco", "dreg", "reweighted-wake-sleep"):
        estimator = REGISTRY.estimator(name, 3)
        if estimator.refuses(problem) is None:
            rows = stacked(estimator, problem, problem.parameters, 20, torch.Generator().manual_seed(0))
            assert bool(rows.isfinite().all()) and bool(rows[:, 1:].any(0).float().mean() > 0.5)


def test_minibatches_by_the_image_are_weights_of_single_images():
    """Unscaled, over the subset: the joint log-weight is (10 / 4) times their sum, and its ELBO ten times the mean's."""
    joint, each = (program("minibatch_vae", "minibatch_vae_guide", "pixels", plate=plate) for plate in ("", "data"))
    assert (joint.points, each.points, each.total_points) == (1, 4, 10)
    noise = joint.guide(joint.parameters["phi"]).noise((5,), torch.Generator().manual_seed(1))
    found = []
    for problem in (joint, each):
        guide = problem.guide(problem.parameters["phi"])
        z = guide.transform(noise)
        found.append(problem.log_joint(problem.parameters["theta"], z) - guide.log_prob(z))
    torch.testing.assert_close(found[0], 2.5 * found[1].sum(1))
    one, other = (
        stacked(REGISTRY.estimator("reparameterization", 2), p, p.parameters, 8, torch.Generator().manual_seed(2))
        for p in (joint, each)
    )
    torch.testing.assert_close(one, 10 * other, rtol=1e-4, atol=1e-5)
    theirs = REGISTRY.estimator("pyro-renyi-elbo", 2)
    assert "another subset" in (theirs.refuses(each) or "")
    gradients = REGISTRY.estimator("pyro-trace-elbo", 2).gradients(each, each.parameters, 200, 0)
    ours = stacked(
        REGISTRY.estimator("reparameterization", 2), each, each.parameters, 2000, torch.Generator().manual_seed(3)
    )
    error = (gradients.value.var() / 200 + ours[:, 0].var() / 2000).sqrt()
    assert abs(gradients.value.mean() - ours[:, 0].mean()) < 4.5 * error < 0.1 * abs(ours[:, 0].mean())


def test_a_conjugate_model_has_the_stated_gradient():
    """|z| < 4.5 for three numbers, 2e-5, and the gradient is over ten standard errors long."""
    problem = program("rate", "rate_guide", "counts", truth=f"{FILE}:rate_exact")
    exact = problem.exact(Target("elbo"))
    truth = torch.tensor([exact.value, *(float(exact.gradient["phi"][name]) for name in ("a", "b"))])
    rows = stacked(
        REGISTRY.estimator("reparameterization", 4), problem, problem.parameters, 4000, torch.Generator().manual_seed(0)
    )
    error = rows.std(0) / len(rows) ** 0.5
    assert float(((rows.mean(0) - truth) / error).abs().max()) < 4.5
    assert float(truth[1:].norm()) > 10 * float(error[1:].norm())


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("rate_wrong_shape", r"phi\.a has shape \(2,\), the parameter has \(\)"),
        ("rate_wrong_name", r"no phi\.b"),
        ("rate_nowhere", "has no 'rate_nowhere'"),
    ],
)
def test_a_stated_gradient_of_another_shape_is_refused(function, words):
    with pytest.raises(SpecError, match=words) as raised:
        program("rate", "rate_guide", "counts", truth=f"{FILE}:{function}").exact(Target("elbo"))
    assert "\n" not in str(raised.value)


CUT = [
    (
        "detached_latent",
        "two_guide",
        "log p of site 'x' moves by .* along guide site 'mu' where its derivative says .0",
    ),
    ("step", "two_guide", "log p of site 'x' moves by .* along guide site 'mu'"),
    ("detached_parameter", "normal_guide", "log p of site 'mu' moves by .* along parameter 'prior'"),
    ("plain", "detached_guide", "log q of site 'mu' moves by .* along parameter 'loc'"),
]


@pytest.mark.parametrize(("model", "q", "words"), CUT, ids=lambda each: each[:20])
def test_a_derivative_that_is_not_that_of_the_value_is_found_with_its_site(model, q, words):
    import re

    problem = program(model, q)
    (cut,) = problem.cuts
    assert re.match(words, cut.sentence) and "\n" not in cut.sentence
    path, score = (REGISTRY.estimator(name, 2) for name in ("reparameterization", "leave-one-out"))
    assert problem.faults(path) == [cut.sentence]
    assert bool(problem.faults(score)) == bool(cut.parameter)  # a score function rests on no derivative in z
    assert (score.refuses(problem) is None) == (not cut.parameter)


@pytest.mark.parametrize(
    ("model", "q"),
    [
        ("smooth_pair", "two_guide"),
        ("plain", "AutoMultivariateNormal"),
        ("handled", "handled_guide"),
        ("plane", "AutoIAFNormal"),
    ],
)
def test_kinks_and_flows_are_no_cuts(model, q):
    assert program(model, q).cuts == []


def test_check_says_biased_and_why():
    (found,) = check(REGISTRY.estimator("reparameterization", 2), [program("plain", "detached_guide")], override=None, seed=0, max_draws=4096)  # fmt: skip
    assert found.finding.outcome == "BIASED" and "parameter 'loc'" in found.finding.reason
    (found,) = check(REGISTRY.estimator("reparameterization", 2), [program("step", "two_guide")], override=None, seed=0, max_draws=200_000)  # fmt: skip
    assert found.finding.outcome == "BIASED" and "guide site 'mu'" in found.finding.reason
    assert found.finding.direction.startswith("phi")


@pytest.mark.parametrize(
    ("model", "q", "right", "wrong", "words"),
    [
        ("two_normal", "PointAndNormal", ("reparameterization", "iwae"), ("leave-one-out", "dreg", "vimco"),
         "guide site 'mu' moves with parameter 'PointAndNormal.0.mu'"),
        ("plain", "AutoStructured", ("reparameterization", "iwae"), ("sticking-the-landing", "dreg"), "guide site 'mu' moves with"),
        ("plane", "Planar", ("reparameterization",), ("leave-one-out",), "only total derivatives"),
        ("plain", "auxiliary_guide", ("reparameterization", "leave-one-out"), ("iwae", "vimco"), "'u' has no counterpart"),
    ],
)  # fmt: skip
def test_where_no_density_shows_what_moves_only_what_is_right_is_let_pass(model, q, right, wrong, words):
    problem = program("smooth_pair" if model == "two_normal" else model, q)
    for name in right:
        assert REGISTRY.estimator(name, 2).refuses(problem) is None
    for name in wrong:
        reason = REGISTRY.estimator(name, 2).refuses(problem)
        assert reason is not None and words in reason and "\n" not in reason, reason


REFUSED = [
    ("branching", "normal_guide", "the model, at or after site 'mu', decides by the value of a draw"),
    ("numbers", "normal_guide", "makes a Python number of a draw"),
    ("random_inside", "normal_guide", r"the model, at site 'x', draws random numbers outside of pyro.sample"),
    ("plain", "random_guide", r"the guide, at site 'mu', draws random numbers outside of pyro.sample"),
    ("batch_norm", "normal_guide", r"writes into a tensor that it keeps \(in .*\), as BatchNorm does"),
    ("positive_only", "normal_guide", "model site 'mu' has no density at"),
    ("own_fault", "normal_guide", "the model fails: ValueError: my own fault of two lines"),
    ("plain", "impossible_guide", "guide site 'mu': Empirical cannot be drawn"),
    (
        "plain",
        "straight_through_guide",
        "guide site 'mu': RelaxedBernoulliStraightThrough draws one value and differentiates",
    ),
    ("enumerated", "enumerated_guide", "latent site 'which' of the model is summed over"),
    ("plain", "AutoDelta", "the guide draws nothing"),
    ("nested", "AutoNormal", "the model, at or after site 'x', fails: ValueError: Error while computing log_prob"),
]


@pytest.mark.parametrize(("model", "q", "words"), REFUSED, ids=lambda each: each[:24])
def test_what_cannot_be_done_is_told_in_one_line(model, q, words):
    with pytest.raises(SpecError, match=words) as raised:
        program(model, q)
    assert "\n" not in str(raised.value)
