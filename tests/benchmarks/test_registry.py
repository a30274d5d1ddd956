from __future__ import annotations

import importlib.metadata

import pytest
import torch

from benchmarks import registry
from benchmarks.problems import Gaussian1D
from benchmarks.registry import Registry, estimator_spec, load, named
from benchmarks.specs import SpecError
from estimators import IWAE, Refusal, Target

PLUGIN = """
from dataclasses import dataclass
import torch
from estimators import Estimator, Target, Weights
from benchmarks.problems import Gaussian1D

class Base(Estimator):
    needs = frozenset({"reparameterizable"})

    def weights(self, log_w):
        return Weights(1 / self.num_samples, None, 1 / self.num_samples)

class Mine(Base):
    "Mine, with the density of q held."
    @property
    def targets(self):
        return {"theta": Target("elbo"), "phi": Target("elbo")}

@dataclass(frozen=True)
class Mixed(Mine):
    share: float = 0.5
    rounds: int = 1
    name = "mixed"
    min_num_samples = 3

@dataclass(frozen=True)
class Narrow(Gaussian1D):
    scale: float = 0.1
    name = "narrow"

made = Mixed(num_samples=4, share=0.25)
number = 3

def rule(log_w):
    w = log_w.softmax(0)
    return w**2, None, w
"""


def told(function, *arguments):
    """The one line that a wrong usage is refused with."""
    with pytest.raises(SpecError) as caught:
        function(*arguments)
    return str(caught.value)


def test_names_to_components():
    registry = Registry()
    sumo = registry.estimator("sumo", 3)
    assert sumo.num_samples == 3 and registry.estimator(estimator_spec(sumo), 3) == sumo
    problem = registry.problem("gaussian-1d[loc=2]", "float32")
    assert (problem.loc, problem.dtype, problem.data.dtype) == (2.0, "float32", torch.float32)
    assert registry.problem("gaussian-1d[loc=2.0]", "float32") is problem  # built once: what it knows is kept
    assert "pyro-trace-elbo" in registry.estimators


def test_unknown_names_are_told_with_the_nearest():
    registry = Registry()
    assert told(registry.estimator, "reparametrization", 1) == (
        "no estimator 'reparametrization'; did you mean 'reparameterization'?"
    )
    assert told(registry.problem, "rainfort") == "no problem 'rainfort'; did you mean 'rainforth'?"
    assert "allowed: score-function, leave-one-out" in told(registry.estimator, "zzz", 1)
    with pytest.raises(Refusal, match="leave-one-out needs num_samples >= 2, not 1"):
        registry.estimator("leave-one-out", 1)


def test_a_plugin_adds_estimators_and_problems(plugin):
    registry = Registry([plugin(PLUGIN)])
    assert registry.estimator("Mine", 2).label() == "Mine"
    assert estimator_spec(registry.estimator("mixed[share=1]", 3)) == "mixed[share=1.0,rounds=1]"
    assert registry.problem("narrow").spec.startswith("narrow[loc=1.2,scale=0.1")
    assert registry.problem("narrow").exact(Target("elbo")).value < 0
    # A base from which others derive is no entry, nor is what the file merely imports.
    assert "Base" not in registry.estimators
    assert set(registry.problems) - set(Registry().problems) == {"narrow"}


def test_what_installed_packages_offer_is_there_and_looked_up_once(monkeypatch, plugin):
    mine = load(plugin(PLUGIN)).Mine

    class Point:
        name = "theirs"
        load = staticmethod(lambda: mine)

    asked = []
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: asked.append(group) or [Point])
    registry._entry_points.cache_clear()
    try:
        for _ in range(2):
            found = Registry()
        assert found.estimators["theirs"] is mine
        assert asked == ["gradest.estimators", "gradest.problems"]
    finally:
        registry._entry_points.cache_clear()


@pytest.mark.parametrize(
    ("offered", "part"),
    [
        (lambda: 1 / 0, "theirs of an installed package cannot be made: ZeroDivisionError: division by zero"),
        (lambda: type("Theirs", (IWAE,), {"citations": 5}), "theirs of an installed package: citations is to be"),
    ],
)
def test_what_an_installed_package_offers_is_looked_at_too(monkeypatch, offered, part):
    class Point:
        name = "theirs"
        load = staticmethod(offered)

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [Point])
    registry._entry_points.cache_clear()
    try:
        assert part in told(Registry)
    finally:
        registry._entry_points.cache_clear()


def test_a_plugin_may_be_listed_whole(plugin):
    from benchmarks.catalogue import catalogue

    registry = Registry([plugin(PLUGIN)])
    rows = {row["name"]: row for what in ("estimators", "problems") for row in catalogue(registry, what)}
    assert rows["Mine"]["summary"] == "Mine, with the density of q held." and rows["mixed"]["min_num_samples"] == 3
    assert rows["narrow"]["parameters"]["scale"] == 0.1


def test_the_version_of_a_plugin_changes_with_its_file(plugin):
    path = plugin(PLUGIN)
    registry = Registry([path])
    ours, theirs = registry.estimator("iwae", 2), registry.estimator("Mine", 2)
    before = registry.version(theirs)
    assert registry.version(ours) == ours.version and before.startswith("1+")
    assert registry.version(registry.problem("narrow")) == f"{Gaussian1D.version}+{before.removeprefix('1+')}"
    plugin(PLUGIN)
    assert registry.version(theirs) == before
    plugin(PLUGIN + "\n# another mind\n")
    assert registry.version(theirs) != before and registry.version(ours) == ours.version


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("raise RuntimeError('not today\\nnor tomorrow')", "does not run: RuntimeError: not today"),
        ("import no_such_module", "does not run: ModuleNotFoundError: No module named 'no_such_module'"),
        ("def f(:\n", "does not run: SyntaxError: "),
        ("raise SystemExit(0)", "does not run: SystemExit: 0"),
    ],
)
def test_a_file_that_does_not_run_is_told(plugin, text, part):
    path = plugin(text)
    assert part in told(Registry, [path]) and path in told(load, path)


def test_files_that_are_no_plugins(plugin, tmp_path):
    assert told(load, str(tmp_path / "none.py")) == f"no plug-in file {str(tmp_path / 'none.py')!r}"
    assert "no plug-in file" in told(load, str(tmp_path))
    assert "is not a Python file" in told(load, plugin("x = 1", "plugin.txt"))


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("pass", "Mine cannot be made: TypeError: Can't instantiate abstract class Mine"),
        ("targets = {'theta': Target('elbo')}", "targets maps theta and phi each to None or to a Target"),
        ("targets = Target('elbo')", "targets maps theta and phi each to None or to a Target"),
        ("targets = {'theta': 'elbo', 'phi': None}", "'theta': 'elbo'"),
        ("targets = dict.fromkeys(('theta', 'phi'), Target('elbow'))", "Target(name='elbow'"),
        ("targets = dict.fromkeys(('theta', 'phi'), Target('iwae'))", "iwae with num_samples"),
        ("targets = property(lambda self: 1 / 0)", "Mine cannot be made: ZeroDivisionError"),
        ("targets = {}\n    def __post_init__(self): raise KeyError('x')", "Mine cannot be made: KeyError: 'x'"),
    ],
)
def test_what_an_estimator_declares_is_looked_at_first(plugin, body, part):
    path = plugin(f"from estimators import Estimator, Target\n\nclass Mine(Estimator):\n    {body}\n")
    assert part in told(Registry([path]).estimator, "Mine", 2)


def test_a_problem_that_cannot_be_made_is_told(plugin):
    text = "from benchmarks.problems import Gaussian1D\n\nclass Odd(Gaussian1D):\n    data = property(lambda self: 1 / 0)\n"
    assert told(Registry([plugin(text)]).problem, "Odd") == "Odd cannot be made: ZeroDivisionError: division by zero"
    assert "linear-gaussian cannot be made: OverflowError" in told(
        Registry().problem, "linear-gaussian[noise_scale=1e300]"
    )


def test_one_estimator_by_name_or_from_a_file(plugin):
    path = plugin(PLUGIN)
    assert [each.num_samples for each in named("leave-one-out", None, None)[0]] == [2, 3]
    assert named("iwae", 7, None) == ([Registry().estimator("iwae", 7)], None)
    (mine, more), where = named(f"{path}:Mine", None, None)
    assert (mine.label(), mine.num_samples, more.num_samples, where) == ("Mine", 2, 3, path)
    (mixed, more), _ = named(f"{path}:Mixed[share=0.75]", None, None)
    assert (mixed.share, mixed.num_samples) == (0.75, 3) and (more.share, more.num_samples) == (0.75, 4)
    (made,), _ = named(f"{path}:made", None, None)  # the file says with how many
    assert (made.share, made.num_samples) == (0.25, 4)
    assert [each.num_samples for each in named(f"{path}:made", 9, None)[0]] == [9]
    with pytest.raises(Refusal, match="mixed needs num_samples >= 3, not 1"):
        named(f"{path}:Mixed", 1, None)


def test_a_bare_function_is_an_estimator_of_the_target_that_is_given(plugin):
    path = plugin(PLUGIN)
    (estimator,), _ = named(f"{path}:rule", 3, "iwae")
    assert estimator.targets == dict.fromkeys(("theta", "phi"), Target("iwae", 3)) and estimator.label() == "rule"
    weights = estimator.weights(torch.zeros(3))
    torch.testing.assert_close(weights.path, torch.full((3,), 1 / 9))
    assert weights.score is None
    assert "say by --target what its gradient is of" in told(named, f"{path}:rule", 3, None)


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("mine", "has no 'mine'; did you mean 'Mine'?"),
        ("number", "number in "),
        ("number", "is neither an Estimator class nor a weights function"),
        ("Base", "Base does not define targets: what does each block estimate the gradient of?"),
        ("Narrow", "is neither an Estimator class nor a weights function"),
        ("", "cannot read ''"),
        ("Mixed[shore=1]", "mixed has no parameter 'shore'; did you mean 'share'?"),
    ],
)
def test_what_a_file_does_not_hold_is_told(plugin, name, part):
    assert part in told(named, f"{plugin(PLUGIN)}:{name}", None, None)


def test_an_estimator_of_a_file_is_asked_for_by_name(plugin):
    path = plugin(PLUGIN)
    assert told(named, path, None, None).startswith(f"{path}: which one? write {path}:NAME, allowed: Mine, ")


def test_a_need_that_nobody_knows_is_no_need(plugin):
    text = PLUGIN.replace('"reparameterizable"', '"reparametrizable"')
    assert text != PLUGIN
    expected = "Mine: no need 'reparametrizable'; did you mean 'reparameterizable'?"
    assert told(named, f"{plugin(text)}:Mine", None, None) == expected


def test_an_empty_file_says_so(plugin):
    assert "has no 'x'; it defines no estimator" in told(named, plugin("y = 1") + ":x", None, None)


MADE = """
from estimators import Estimator, Target, Weights
from benchmarks.problems import Gaussian1D

class Mute(BaseException):
    def __str__(self):
        raise ValueError

class Shy:
    def __repr__(self):
        raise Mute

def raises(problem):
    def it(self):
        raise problem
    return property(it)

class Mine(Estimator):
    targets = property(lambda self: dict.fromkeys(("theta", "phi"), Target("elbo")))
    BODY
"""


@pytest.mark.parametrize(
    ("body", "part"),
    [
        ("citations = None", "plugin.py: Mine: citations is to be a tuple of texts, not None"),
        ("citations = 5", "citations is to be a tuple of texts, not 5"),
        ("citations = ([],)", "citations is to be a tuple of texts, not ([],)"),
        ("citations = property(lambda self: 1 / 0)", "citations is to be a tuple of texts, not <property"),
        ("citations = Shy()", "citations is to be a tuple of texts, not a Shy"),
        ("name = 5", "plugin.py: Mine: name is to be a text that can be printed, without any of []=,*?!, not 5"),
        ("name = None", "name is to be a text that can be printed"),
        ("name = ['x']", "not ['x']"),
        ("name = property(lambda self: 'x')", "name is to be a text that can be printed"),
        ("name = '\\ud800'", r"not '\ud800'"),
        ("name = '\\u202e'", r"not '\u202e'"),
        ("name = 'a\\nb'", r"not 'a\nb'"),
        ("name = 'a[b]'", "not 'a[b]'"),
        ("needs = 'gaussian'", "needs is to be a frozenset of texts, not 'gaussian'"),
        ("min_num_samples = 2.0", "min_num_samples is to be a whole number from 0 up, not 2.0"),
        ("label = classmethod(lambda kind: 1 / 0)", "label cannot be had: ZeroDivisionError: division by zero"),
        ("usual_num_samples = classmethod(lambda kind: 'x')", "usual_num_samples is to be a method that gives a whole"),
        ("spec = 5", "spec is to be a text, not 5"),
        ("__doc__ = 5", "__doc__ is to be a text, not 5"),
        ("raise Mute", "plugin.py does not run: Mute: its text cannot be shown"),
    ],
)
def test_what_a_class_declares_is_looked_at_when_its_file_is_taken_in(plugin, body, part):
    """Before anybody trips over it, whether the class is asked for or not."""
    for kind in ("Estimator", "Gaussian1D"):
        known = "spec" if kind == "Estimator" else ("needs", "min_num", "raise", "label", "usual")
        if not body.startswith(known):
            path = plugin(MADE.replace("Mine(Estimator)", f"Mine({kind})").replace("BODY", body))
            assert part in told(Registry, [path])


@pytest.mark.parametrize(
    ("body", "part", "kind"),
    [
        ("needs = raises(KeyError('x'))", "Mine: needs cannot be had: KeyError: 'x'", SpecError),
        ("variance_exists = raises(KeyError('x'))", "Mine: variance_exists cannot be had: KeyError: 'x'", SpecError),
        ("family = property(lambda self: 7)", "Mine: family is to be a text, not 7", SpecError),
        ("targets = raises(Mute())", "Mine cannot be made: Mute: its text cannot be shown", SpecError),
        ("targets = {'theta': Shy(), 'phi': None}", "a Target of", SpecError),
        ("targets = raises(MemoryError())", "Mine cannot be made: MemoryError", MemoryError),
        ("targets = raises(OSError('no such disk'))", "Mine cannot be made: OSError: no such disk", OSError),
    ],
)
def test_what_an_estimator_itself_declares_is_told_with_its_name(plugin, body, part, kind):
    registry = Registry([plugin(MADE.replace("BODY", body))])
    with pytest.raises(kind) as caught:
        registry.estimator("Mine", 2)
    assert part in str(caught.value)


def test_no_name_is_taken_twice(plugin):
    """Else one estimator would be measured under the name of another."""
    ours = plugin("from estimators import IWAE\n\nclass Mine(IWAE):\n    name = 'iwae'\n")
    assert told(Registry, [ours]).endswith(
        ": Mine has the name of IWAE of estimators.multisample, 'iwae'; give it one of its own"
    )
    problem = plugin("from benchmarks.problems import Banana\n\nclass Mine(Banana):\n    name = 'banana'\n", "other.py")
    assert "Mine has the name of Banana of benchmarks.problems.banana" in told(Registry, [problem])
    first, second = (plugin("from estimators import IWAE\n\nclass Mine(IWAE): ...\n", f"{n}.py") for n in "ab")
    assert f"{second}: Mine has the name of Mine of {first}, 'Mine'" in told(Registry, [first, second])
    assert "Mine" in Registry([first, first]).estimators
    both = "from estimators import IWAE\n\nclass A(IWAE):\n    name = 'x'\n\nclass B(IWAE):\n    name = 'x'\n"
    assert told(Registry, [plugin(both, "c.py")]).endswith("c.py: A and B are both called 'x'")


def test_a_plugin_may_share_a_name_with_what_is_no_rival(plugin):
    """An estimator called as a problem of ours; that has no part in its file."""
    registry = Registry([plugin("from estimators import IWAE\n\nclass Mine(IWAE):\n    name = 'banana'\n")])
    banana = registry.problem("banana")
    assert registry.version(banana) == banana.version
    assert "+" in registry.version(registry.estimator("banana", 2))
