"""From a configuration, or options on the command line, to the list of cells of a run."""

from __future__ import annotations

import inspect
import re
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from estimators import Estimator, Refusal, sweep

from .compiling import compilable
from .outside import shown
from .problems import Problem
from .registry import Registry, check_device, estimator_spec, telling
from .schema import SHARED, Cell, MatmulPrecision
from .specs import MOST_SAMPLES, SpecError, nearest, parse, select

LARGEST = 2**24
"""Bytes of a configuration that is read."""

NumSamples = Annotated[int, Field(ge=1, le=MOST_SAMPLES)]


class Suite(BaseModel):
    """Problems x estimators x numbers of samples x seeds, with their settings."""

    # A file that says true, "2" or 1e3 where a whole number belongs has a slip in it.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    problems: list[str] = Field(min_length=1)
    estimators: list[str] = Field(default=["*"], min_length=1)
    num_samples: list[NumSamples] = Field(default=[1, 8, 64], min_length=1)
    replicates: int = Field(default=4000, ge=2, le=100_000_000)
    seeds: int = Field(default=1, ge=1, le=10_000)
    dtype: Literal["float32", "float64"] | None = None
    device: str = "cpu"
    compile: bool = False
    matmul_precision: MatmulPrecision = "highest"
    share: bool = False


class Config(BaseModel):
    """A run: one or more suites."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suite: list[Suite] = Field(min_length=1)


DEFAULT = Path(__file__).with_name("default.toml")


def read_config(path: Path) -> Config:
    """A configuration from a TOML file.

    Raises:
        SpecError: if it cannot be read, is not TOML, or holds what no suite has; the message names the place.
    """
    try:
        return Config.model_validate(read_toml(path))
    except ValidationError as problem:
        raise SpecError(f"{path}: {first_line(problem, Config)}") from problem


def read_toml(path: Path) -> dict[str, Any]:
    """What a TOML file of at most :data:`LARGEST` bytes says.

    Raises:
        SpecError: if it cannot be read, is larger, or is not TOML.
    """
    try:
        with open(path, "rb") as stream:  # a pipe is as good as a file, but either may have no end
            content = stream.read(LARGEST + 1)
    except OSError as problem:
        raise SpecError(f"cannot read {path}: {problem.strerror}") from problem
    if len(content) > LARGEST:
        raise SpecError(f"{path} is no configuration: it has more than {LARGEST} bytes")
    try:
        return tomllib.loads(content.decode())
    except (ValueError, RecursionError) as problem:  # of the parser, which minds long numbers and deep brackets, too
        raise SpecError(f"{path} is not TOML: {problem}") from problem


def configure(path: Path | None, changes: dict[str, Any]) -> Config:
    """The configuration of a run: of a file, or the default suite, or of options alone where they name problems.

    ``changes`` replaces fields of every suite.

    Raises:
        SpecError: if the file, or the result, is no configuration.
    """
    try:
        if path is None and "problems" in changes:
            return Config(suite=[Suite.model_validate(changes)])
        base = read_config(path or DEFAULT)
        return Config(suite=[Suite.model_validate({**suite.model_dump(), **changes}) for suite in base.suite])
    except ValidationError as problem:
        raise SpecError(first_line(problem, Suite)) from problem


def as_compilable(config: Config) -> tuple[Config, list[str]]:
    """The same configuration, its suites eager on devices for which nothing compiles here, and a line on each of these.

    Each device is tried, which takes seconds.

    Raises:
        SpecError: for a device that is not there.
    """
    devices = dict.fromkeys(suite.device for suite in config.suite if suite.compile)
    if not devices:
        return config, []
    from . import compiling

    for device in devices:
        check_device(device)
    wrong = {device: problem for device in devices if (problem := compiling.obstacle(device)) is not None}
    suites = [
        suite.model_copy(update={"compile": suite.compile and suite.device not in wrong}) for suite in config.suite
    ]
    return Config(suite=suites), [f"not compiled, measured eagerly on {device}: {why}" for device, why in wrong.items()]


def first_line(problem: ValidationError, kind: type[BaseModel]) -> str:
    """The first complaint of a validation, as one line: where, what (with the nearest name that is allowed), and the value."""
    errors = problem.errors()
    # What is misspelt is missing, too.
    error = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    *sections, name = error["loc"]
    words = error["msg"]
    if error["type"] == "extra_forbidden":
        words = f"no such setting; {nearest(str(name), _section(kind, sections).model_fields)}"
    elif error["type"] == "literal_error" and isinstance(error["input"], str):
        near = nearest(error["input"], re.findall(r"'(.*?)'", error["ctx"]["expected"]))
        words += f"; {near}" if near.endswith("?") else ""
    return f"{'.'.join(map(str, error['loc']))}: {words} (given: {shown(error['input'])})"[:300]


def _section(kind: type[BaseModel], place: Sequence[int | str]) -> type[BaseModel]:
    """The model at a place within another."""
    for part in place:
        if isinstance(part, str):
            hint = kind.model_fields[part].annotation
            kind = next(
                each for each in (hint, *get_args(hint)) if inspect.isclass(each) and issubclass(each, BaseModel)
            )
    return kind


def cells(config: Config, registry: Registry) -> tuple[list[Cell], list[str]]:
    """All cells of a configuration without repetition, and a line for each combination that was left out.

    A number of samples that an estimator does not allow is left out while another one remains, or where a ``*`` named it.

    Raises:
        SpecError, Refusal: for an unknown name, a wrong parameter, a device that is not there, or an estimator of which no
            cell remains.
    """
    found: dict[str, Cell] = {}
    left_out: list[str] = []
    for suite in config.suite:
        check_device(suite.device)
        stated = {parse(pattern)[0] for pattern in suite.problems}
        offered = [name for name, kind in registry.problems.items() if name in stated or not kind.wants_settings]
        problems = select(suite.problems, offered, "problem")
        named = {parse(pattern)[0] for pattern in suite.estimators}
        for name in select(suite.estimators, registry.estimators, "estimator"):
            settings, refused = _allowed(registry, name, suite.num_samples)
            left_out += refused
            if not settings and parse(name)[0] in named:
                raise Refusal(refused[0])
            for problem_name in problems:
                problem = registry.problem(problem_name, suite.dtype, suite.device)
                if suite.matmul_precision != "highest" and problem.dtype != "float32":
                    raise SpecError(
                        f"matmul_precision={suite.matmul_precision} is for float32 alone, not {problem.dtype} as "
                        f"{problem_name} has; give --dtype float32"
                    )
                for estimator in settings:
                    with telling(name):
                        first = _first(suite, registry, problem, estimator)
                    for seed in range(suite.seeds):
                        cell = first.model_copy(update={"seed": seed})
                        found.setdefault(cell.id, cell)
    return list(found.values()), list(dict.fromkeys(left_out))


def _first(suite: Suite, registry: Registry, problem: Problem, estimator: Estimator) -> Cell:
    """The cell of a problem and an estimator with the first seed."""
    versions = {"problem": registry.version(problem), "estimator": registry.version(estimator)}
    compiled = suite.compile and compilable(estimator)
    if suite.share and not compiled and shareable(estimator, versions):
        versions[SHARED] = sweep.VERSION
    return Cell(
        problem=problem.spec,
        estimator=estimator_spec(estimator),
        num_samples=estimator.num_samples,
        replicates=suite.replicates,
        seed=0,
        dtype=problem.dtype,
        device=suite.device,
        compiled=compiled,
        matmul_precision=suite.matmul_precision,
        versions=versions,
    )


def shareable(estimator: Estimator, versions: dict[str, str]) -> bool:
    """Whether an estimator's cells may be measured together with others': rules of this suite, on problems of this suite.

    Code from plug-ins is never measured in the company of other code.
    """
    ours = type(estimator).__module__.startswith("estimators.") and not any("+" in each for each in versions.values())
    return ours and sweep.is_rule(estimator)


def _allowed(registry: Registry, name: str, num_samples: list[int]) -> tuple[list, list[str]]:  # type: ignore[type-arg]
    """The estimators of one name for all numbers of samples that it allows, and why the others are left out."""
    allowed, refused = [], []
    for K in dict.fromkeys(num_samples):
        try:
            allowed.append(registry.estimator(name, K))
        except Refusal as problem:
            refused.append(str(problem))
    return allowed, refused
