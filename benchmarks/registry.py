"""Names to components: estimators and problems of this suite, of Pyro, of installed plug-ins and of the user's files."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

import estimators
from estimators import BLOCKS, Estimator, Refusal, Target, Weights
from estimators.contract import MULTI_SAMPLE, NEEDS

from . import declared, problems
from .outside import shown, told
from .problems import Problem
from .specs import SpecError, canonical, convert, nearest, parse, settings_of
from .state import kept
from .targets import TARGETS, target


class Registry:
    """All components by name, with those of the given plug-in files."""

    def __init__(self, plugins: Sequence[str] = ()) -> None:
        self.estimators: dict[str, type[Estimator]] = {**estimators.REGISTRY, **_pyro(), **_entry_points("estimators")}
        self.problems: dict[str, type[Problem]] = {**problems.REGISTRY, **_entry_points("problems")}
        self.plugins = tuple(plugins)
        self._origin: dict[type, str] = {}
        for plugin in plugins:
            for name, kind in _members(load(plugin), Estimator).items():
                self._add(self.estimators, name, kind, plugin)
            for name, kind in _members(load(plugin), Problem).items():
                self._add(self.problems, name, kind, plugin)

    def _add(self, table: dict[str, Any], name: str, kind: type, plugin: str) -> None:
        there = table.setdefault(name, kind)
        if there is not kind:
            # It would be measured under the name of another, and nobody would see that.
            other = f"{there.__name__} of {self._origin.get(there, there.__module__)}"
            raise SpecError(f"{plugin}: {kind.__name__} has the name of {other}, {name!r}; give it one of its own")
        self._origin[kind] = plugin

    def estimator(self, spec: str, num_samples: int) -> Estimator:
        """The estimator of a specification.

        Raises:
            SpecError: unknown name or parameter, or a value of the wrong type.
            Refusal: settings that the estimator does not allow, such as too few samples.
        """
        name, raw = parse(spec)
        kind = self.estimators.get(name)
        if kind is None:
            raise SpecError(f"no estimator {name!r}; {nearest(name, self.estimators)}")
        if "num_samples" in raw:
            raise SpecError(f"{name}: give the number of samples by --num-samples, not in the brackets")
        within = {field for field, about in settings_of(kind).items() if "Estimator" in str(about.type)}
        return _make(kind, num_samples, raw, {key: self.estimator(raw[key], num_samples) for key in within & set(raw)})

    def problem(self, spec: str, dtype: str | None = None, device: str = "cpu") -> Problem:
        """The problem of a specification, ready to be measured.

        Raises:
            SpecError: unknown name or parameter, a value of the wrong type, or one that makes no sense.
        """
        name, raw = parse(spec)
        kind = self.problems.get(name)
        if kind is None:
            raise SpecError(f"no problem {name!r}; {nearest(name, self.problems)}")
        with telling(name), np.errstate(all="ignore"):  # what overflows is told by whoever meets it
            return _build(kind, tuple(convert(kind, raw).items()), dtype, device)

    def version(self, component: Estimator | Problem) -> str:
        """A component's own version, with a digest of its file where it comes from a plug-in."""
        plugin = self._origin.get(type(component))
        digest = "" if plugin is None else f"+{hashlib.sha256(Path(plugin).read_bytes()).hexdigest()[:12]}"
        within = [getattr(component, name) for name in settings_of(type(component))]
        inner = [f" of {self.version(each)}" for each in within if isinstance(each, Estimator)]
        return f"{component.version}{digest}{''.join(inner)}"


@contextmanager
def telling(name: str) -> Iterator[None]:
    """A plug-in's error as one line that names it; the machine's own (disk, memory) are named, too, and stay what they are."""
    try:
        yield
    except (SpecError, Refusal, KeyboardInterrupt) as problem:
        if isinstance(problem, Refusal) and type(problem) is not Refusal:  # its text may be none
            raise Refusal(told(problem)) from problem
        raise
    except BaseException as problem:
        kind = next((each for each in (OSError, MemoryError) if isinstance(problem, each)), SpecError)
        raise kind(f"{name} cannot be made: {told(problem)}") from problem


def _make(
    kind: type[Estimator], num_samples: int, raw: Mapping[str, str], within: Mapping[str, Estimator] | None = None
) -> Estimator:
    """An estimator whose declarations can be relied on from here; ``within`` are the settings that are estimators.

    Raises:
        SpecError: if it cannot be made, or declares what is no target.
        Refusal: settings that it does not allow.
    """
    with telling(kind.label()):
        made = kind(num_samples=num_samples, **{**convert(kind, raw), **(within or {})})
        targets = made.targets
        whole = isinstance(targets, Mapping) and set(targets) == set(BLOCKS)
        if not whole or not all(claim is None or _is_target(claim) for claim in targets.values()):
            raise SpecError(
                f"{kind.label()}: targets maps theta and phi each to None or to a Target of {', '.join(TARGETS)} "
                f"(iwae with num_samples), not {shown(targets)}"
            )
        _hold(made, kind.label())
        if unknown := sorted(made.needs - NEEDS.keys()):
            raise SpecError(f"{kind.label()}: no need {unknown[0]!r}; {nearest(unknown[0], NEEDS)}")
    return made


def _hold(component: Any, name: str) -> None:
    """Refuse a component that declares what nobody can use.

    Raises:
        SpecError: with what it is.
    """
    if wrong := declared.fault(component):
        raise SpecError(f"{name}: {wrong}")


def _is_target(claim: object) -> bool:
    whole = isinstance(claim, Target) and claim.name in TARGETS
    return whole and (claim.name not in MULTI_SAMPLE or bool(claim.num_samples))  # type: ignore[attr-defined]


@lru_cache(maxsize=16)
def _build(kind: type[Problem], settings: tuple[tuple[str, Any], ...], dtype: str | None, device: str) -> Problem:
    where = {"device": device} | ({"dtype": dtype} if dtype else {})
    made = kind(**dict(settings), **where)
    _hold(made, kind.name)
    return made


def estimator_spec(estimator: Estimator) -> str:
    """The canonical specification of an estimator; its number of samples stands apart."""
    return canonical(estimator, leave_out=("num_samples",))


def check_device(device: str) -> None:
    """Refuse a device that is not there.

    Raises:
        SpecError: with what is there.
    """
    try:
        kind = torch.device(device)
    except RuntimeError:
        raise SpecError(f"no device {device!r}; write cpu, cuda, cuda:0, xpu or mps") from None
    if kind.type == "cpu" and kind.index is not None:  # it would be another cell, and the same measurement
        raise SpecError(f"no device {device!r}: the processor is one, cpu")
    if kind.type == "cpu":
        return
    current = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    there = torch.accelerator.device_count() if current is not None else 0
    if current is None or current.type != kind.type or (kind.index or 0) >= there:
        found = "cpu" if current is None else f"cpu, {current.type} ({there})"
        raise SpecError(f"no device {device!r} on this machine; there is: {found}")


def load(path: str) -> ModuleType:
    """Run a plug-in file that the user named, and look at what its classes declare.

    Raises:
        SpecError: if it is not there, does not run (the first line of its error is given), or declares what nobody can use.
    """
    file = Path(path)
    if not file.is_file():
        raise SpecError(f"no plug-in file {path!r}")
    name = "gradest_plugin_" + hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:12]
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise SpecError(f"{path!r} is not a Python file")
    findable(file.resolve().parent)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with kept():
            spec.loader.exec_module(module)
        for kind in (Estimator, Problem):
            for member in _own(module, kind):
                _taken_in(member, f"{path}: {member.__name__}", member.__name__)
    except BaseException as problem:
        sys.modules.pop(name, None)
        if isinstance(problem, SpecError | KeyboardInterrupt):
            raise
        raise SpecError(f"{path} does not run: {told(problem)}") from problem
    return module


def findable(folder: Path) -> None:
    """Let modules in a folder be imported, as Python does for a script's own; whatever is installed goes before them."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _own(module: ModuleType, kind: type) -> list[type]:
    """Classes of a kind that a module itself defines and that can be asked for.

    An abstract class that others derive from is their base and no entry; one that stands alone has forgotten something,
    and whoever asks for it is told what.
    """
    own = [
        member
        for member in vars(module).values()
        if inspect.isclass(member) and issubclass(member, kind) and member.__module__ == module.__name__
    ]
    bases = {base for member in own for base in member.__mro__[1:]}
    return [member for member in dict.fromkeys(own) if not (inspect.isabstract(member) and member in bases)]


def _members(module: ModuleType, kind: type) -> dict[str, Any]:
    """The same by name: their own, not an inherited one.

    Raises:
        SpecError: if two have the same.
    """
    found: dict[str, Any] = {}
    for member in _own(module, kind):
        if found.setdefault(member.name, member) is not member:
            both = f"{found[member.name].__name__} and {member.__name__}"
            raise SpecError(f"{module.__file__}: {both} are both called {member.name!r}")
    return found


@cache
def _entry_points(group: str) -> dict[str, Any]:
    """What installed packages offer; looked up once, since that opens the metadata of all of them.

    Raises:
        SpecError: if one of them does not load, or declares what nobody can use.
    """
    found = {}
    for point in importlib.metadata.entry_points(group=f"gradest.{group}"):
        where = f"{point.name} of an installed package"
        with telling(where), kept():
            found[point.name] = _taken_in(point.load(), where, point.name)
    return found


def _taken_in(kind: type, where: str, name: str) -> type:
    """A class of other people, under a name of its own, not an inherited one, and looked at."""
    if "name" not in vars(kind):
        kind.name = name  # type: ignore[attr-defined]
    _hold(kind, where)
    return kind


def _pyro() -> dict[str, type[Estimator]]:
    from .references import numpyro_losses, pyro_losses

    theirs = (*pyro_losses.LOSSES, *(numpyro_losses.LOSSES if numpyro_losses.installed() else ()))
    return {kind.name: kind for kind in theirs}


def named(source: str, num_samples: int | None, objective: str | None) -> tuple[list[Estimator], str | None]:
    """The estimator that ``NAME`` or ``FILE.py:NAME`` stands for, and its plug-in file.

    Where nobody says with how many samples, neither here nor in the file, it is given with two numbers of them where it
    allows that: what holds for one K alone is no rule. A function ``weights(log_w)`` counts as an estimator once
    ``objective`` says what it estimates.

    Raises:
        SpecError: if there is none, or it declares nothing.
        Refusal: if ``num_samples`` is not allowed.
    """
    path, colon, name = source.rpartition(":")
    if not colon and source.endswith(".py"):
        raise SpecError(f"{source}: which one? write {source}:NAME, {nearest('', _offered(load(source)))}")
    if not colon:
        registry = Registry()
        kind = registry.estimators.get(parse(source)[0])
        usual = kind.usual_num_samples() if kind else 1
        return _numbers(registry.estimator(source, num_samples or usual), num_samples), None
    module = load(path)
    member = vars(module).get(parse(name)[0])
    if member is None:
        offered = _offered(module)
        raise SpecError(f"{path} has no {name!r}; {nearest(name, offered) if offered else 'it defines no estimator'}")
    if inspect.isclass(member) and issubclass(member, Estimator):
        if inspect.isabstract(member):
            missing = ", ".join(sorted(member.__abstractmethods__))
            raise SpecError(f"{name} does not define {missing}: what does each block estimate the gradient of?")
        made = _make(member, num_samples or member.usual_num_samples(), parse(name)[1])
        return _numbers(made, num_samples), path
    if isinstance(member, Estimator):
        return [member if num_samples is None else replace(member, num_samples=num_samples)], path
    if inspect.isfunction(member):
        if objective is None:
            raise SpecError(f"{name} is a function: say by --target what its gradient is of (elbo, iwae, ...)")
        return _numbers(rule(member)(num_samples=num_samples or 2, objective=objective), num_samples), path
    raise SpecError(f"{name} in {path} is neither an Estimator class nor a weights function")


def _offered(module: ModuleType) -> list[str]:
    functions = [n for n, m in vars(module).items() if inspect.isfunction(m) and m.__module__ == module.__name__]
    return [*_members(module, Estimator), *functions]


def _numbers(estimator: Estimator, num_samples: int | None) -> list[Estimator]:
    if num_samples is not None:
        return [estimator]
    try:
        return [estimator, replace(estimator, num_samples=estimator.num_samples + 1)]
    except Refusal:
        return [estimator]


def rule(function: Callable[..., Any]) -> type[Estimator]:
    """An estimator class around a bare rule ``weights(log_w)``, unbiased in both blocks for a target given later."""

    @dataclass(frozen=True)
    class Rule(Estimator):
        coefficients: Callable[..., Any] = field(default=function, kw_only=True)
        objective: str = "elbo"
        needs = frozenset({"reparameterizable"})

        @property
        def targets(self) -> Mapping[str, Target | None]:  # type: ignore[override]
            return dict.fromkeys(("theta", "phi"), target(self.objective, self.num_samples))

        def weights(self, log_w: torch.Tensor) -> Weights:
            given = self.coefficients(log_w)
            whole = isinstance(given, (tuple, list)) and len(given) == len(Weights._fields)
            return Weights(*given) if whole and not isinstance(given, Weights) else given

    Rule.name = function.__name__
    return Rule


__all__ = ["Refusal", "Registry", "check_device", "estimator_spec", "load", "named"]
