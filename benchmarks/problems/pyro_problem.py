"""A user's own Pyro model and guide as a problem: every estimator that applies runs on it, unchanged and vectorised."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import vmap

from estimators import Block, Guide, Parameters, Target
from estimators.trees import tree_leaves, tree_map

from ..specs import SpecError, nearest
from .problem import Problem, Reference

if TYPE_CHECKING:
    from .pyro_program import Program


class PyroGuide(Guide):
    """A Pyro guide at parameters phi; noise and latents are dicts by site."""

    def __init__(self, problem: PyroProblem, phi: Block) -> None:
        self.problem, self.phi = problem, phi
        self._program = problem.program
        self._last: tuple[Any, Tensor] | None = None
        self.reparameterizable = all(site.smooth for site in self._program.sites.values())  # type: ignore[misc]
        laws = {law for site in self._program.sites.values() for law, _ in site.noise}
        self.noise_law = laws.pop() if len(laws) == 1 else "own"  # type: ignore[misc]

    def noise(self, shape: tuple[int, ...], generator: torch.Generator) -> Any:
        like = self.problem.like

        def fresh(law: str, size: tuple[int, ...], shape: tuple[int, ...]) -> Tensor:
            sample = torch.randn if law == "normal" else torch.rand
            return sample((*shape, *size), generator=generator, dtype=like.dtype, device=like.device)

        drawn = {}
        for name, site in self._program.sites.items():
            # All K samples of an estimate look at the same subset of a plate: it is of the data, not of z.
            of = (*shape[:-1], 1) if site.subset and len(shape) > 1 else shape
            drawn[name] = tuple(fresh(law, size, of).expand((*shape, *size)) for law, size in site.noise)
        return drawn

    def transform(self, noise: Any) -> dict[str, Tensor]:
        z, log_q = over_leading(noise, self._noise_rank, self._sample)
        self._last = (noise, log_q)
        return z

    def log_prob(self, z: dict[str, Tensor]) -> Tensor:
        return over_leading(z, self.problem.latent_rank, self._log_prob)

    def log_prob_transformed(self, noise: Any) -> Tensor:
        if self._last is not None and self._last[0] is noise:
            return self._last[1]  # one run of the guide gave both
        self.transform(noise)
        assert self._last is not None
        return self._last[1]

    def detach(self) -> PyroGuide:
        return PyroGuide(self.problem, {name: leaf.detach() for name, leaf in self.phi.items()})

    @property
    def _noise_rank(self) -> int:
        """Dimensions of the first tensor of one draw's noise."""
        return next(len(site.noise[0].shape) for site in self._program.sites.values() if site.noise)

    def _sample(self, noise: Any) -> tuple[dict[str, Tensor], Tensor]:
        z, log_q = self._program.sample(self.phi, noise, self.problem.plate or None)
        return self.problem.to_front(z), log_q

    def _log_prob(self, z: dict[str, Tensor]) -> Tensor:
        return self._program.guide_log_prob(self.phi, self.problem.from_front(z), self.problem.plate or None)


def over_leading(tree: Any, rank: int, function: Callable[[Any], Any]) -> Any:
    """``function`` of one draw, vectorised over the leading dimensions; ``rank``: of the tree's first tensor in one draw."""
    leaves = tree_leaves(tree)
    first = leaves[0]
    leading = first.shape[: first.ndim - rank]
    if not leading:
        return function(tree)
    flat = tree_map(lambda leaf: leaf.reshape(-1, *leaf.shape[len(leading) :]), tree)
    out = vmap(function)(flat)
    return tree_map(lambda leaf: leaf.reshape(*leading, *leaf.shape[1:]), out)


@dataclass(frozen=True)
class PyroProblem(Problem):
    """A Pyro model and guide that a user names; nothing in them is changed.

    theta holds the parameters that the model uses, phi those of the guide, each unconstrained and by the name under which
    Pyro's store keeps it. One log-weight stands for the whole model, unless ``plate`` names a plate that holds every site:
    then each of its elements has a weight of its own, and objectives are averaged over them. The choice is the user's,
    because another one is another bound, and both are silent.

    Arguments:
        model, q: the model and its guide, ``module:name`` or ``file.py:name``, functions or PyroModules. The guide may also
            be the name of one of Pyro's autoguides, such as ``AutoNormal``.
        args: ``file.py:function``, which returns the arguments of both, as a tuple or as a dict of keywords.
        plate: per-element weights over this plate; empty for one joint weight.
        steps, learning_rate: of training with Pyro's own ``Trace_ELBO`` and Adam before anything is measured.
        seed: of the first run, which initialises the parameters, and of the training.
        truth: ``file.py:function``, which takes a target and returns its exact ``value``, ``theta`` and ``phi`` as a dict, or
            ``None``: a model is never taken for conjugate unless the user says so.

    References:
        Bingham et al. (2019).
    """

    model: str = ""
    q: str = ""
    args: str = ""
    plate: str = ""
    steps: int = 0
    learning_rate: float = 0.01
    seed: int = 0
    truth: str = ""
    dtype: str = field(default="float32", kw_only=True)

    name = "pyro"
    summary = "your own Pyro model and guide, from a file or module"
    citations = ("bingham2019",)
    wants_settings = True
    compared = True

    def __post_init__(self) -> None:
        self.validate()
        program = self.program
        leaves = [leaf for block in program.leaves.values() for leaf in block.values()]
        self.require(bool(program.leaves["phi"]), "the guide has no parameters")
        dtype = str(leaves[0].dtype).removeprefix("torch.")
        object.__setattr__(self, "dtype", dtype)
        object.__setattr__(self, "version", f"{type(self).version}+{self._digest()}")
        rough = [site for site in program.sites.values() if not site.smooth]
        object.__setattr__(self, "offers", frozenset() if rough else frozenset({"reparameterizable"}))
        named = ", ".join(f"{site.name!r} ({site.kind})" for site in rough)
        object.__setattr__(self, "lacking", {"reparameterizable": f"guide site {named} is not"} if rough else {})
        if self.plate:
            self._check_plate()
        # Made here and not on first use: tensors made inside a functorch transform must not outlive it.
        _ = self.data, self.latent_rank
        self.log_joint(self.parameters["theta"], self._probe())  # what the model has against the plate is told at once

    def validate(self) -> None:
        for name in ("model", "q"):
            self.require(bool(getattr(self, name)), f"say which: {name}=file.py:name or module:name")
        self.require(self.steps >= 0, f"steps must not be negative, not {self.steps}")
        self.require(self.learning_rate > 0, f"learning_rate must be positive, not {self.learning_rate}")
        self.require(self.seed >= 0, f"seed must not be negative, not {self.seed}")

    @cached_property
    def program(self) -> Program:
        """Model and guide, run once."""
        from .pyro_program import Program

        model = found(self.model)
        model = model() if inspect.isclass(model) else model
        args, kwargs = _arguments(found(self.args)()) if self.args else ((), {})
        try:
            return Program(model, self._guide(model), args, kwargs, self.seed, self.steps, self.learning_rate)
        except SpecError as wrong:
            raise SpecError(f"{self.model}, {self.q}: {wrong}") from None

    def _digest(self) -> str:
        """Of the files that are named, so that stored cells are measured anew when one of them changes."""
        files = {
            place for source in (self.model, self.q, self.args, self.truth) if (place := source.rpartition(":")[0])
        }
        content = [Path(place).read_bytes() if place.endswith(".py") else place.encode() for place in sorted(files)]
        return hashlib.sha256(b"\0".join(content)).hexdigest()[:12]

    def _guide(self, model: Any) -> Any:
        import pyro.infer.autoguide as autoguides

        if ":" in self.q:
            guide = found(self.q)
            return guide(model) if inspect.isclass(guide) and issubclass(guide, autoguides.AutoGuide) else guide
        automatic = {name for name in autoguides.__all__ if name.startswith("Auto")}
        if self.q not in automatic:
            raise SpecError(f"{self.name}: no guide {self.q!r}; {nearest(self.q, automatic)}")
        return getattr(autoguides, self.q)(model)

    @cached_property
    def parameters(self) -> Parameters:
        return {
            block: {name: leaf.detach().clone() for name, leaf in leaves.items()}
            for block, leaves in self.program.leaves.items()
        }

    @cached_property
    def data(self) -> Tensor:
        """Nothing: the data are in the program's arguments."""
        return self.like.new_zeros(1)

    @cached_property
    def points(self) -> int:
        """Log-weights of one sample: the elements of ``plate``, or one for all."""
        return self.guide(self.parameters["phi"]).log_prob(self._probe())[0].numel()

    @property
    def like(self) -> Tensor:
        """A tensor of the program's own type and device."""
        return next(iter(self.parameters["phi"].values()))

    @cached_property
    def latent_rank(self) -> int:
        """Dimensions of the first latent of one draw."""
        guide = self.guide(self.parameters["phi"])
        noise = guide.noise((), torch.Generator(self.like.device))
        return tree_leaves(guide.transform(noise))[0].ndim

    def guide(self, phi: Block) -> PyroGuide:
        return PyroGuide(self, phi)

    def log_joint(self, theta: Block, z: dict[str, Tensor]) -> Tensor:
        plate = self.plate or None
        return over_leading(
            z, self.latent_rank, lambda z: self.program.model_log_prob(theta, self.from_front(z), plate)
        )

    def to_front(self, z: dict[str, Tensor]) -> dict[str, Tensor]:
        """Latents with the weights' plate as their first dimension, where there is one."""
        return {name: leaf.movedim(axis, 0) if (axis := self._axis(name, leaf)) else leaf for name, leaf in z.items()}

    def from_front(self, z: dict[str, Tensor]) -> dict[str, Tensor]:
        """Latents as Pyro shapes them."""
        return {name: leaf.movedim(0, axis) if (axis := self._axis(name, leaf)) else leaf for name, leaf in z.items()}

    def _axis(self, name: str, leaf: Tensor) -> int:
        site = self.program.sites[name]
        return leaf.ndim - site.event_dim + site.plates[self.plate] if self.plate in site.plates else 0

    def _check_plate(self) -> None:
        for site in self.program.sites.values():
            if site.subset:
                raise SpecError(
                    f"{self.name}: plate {site.name!r} takes random subsets; weights by plate need all of it"
                )
            if self.plate not in site.plates:
                raise SpecError(
                    f"{self.name}: guide site {site.name!r} stands outside plate {self.plate!r}: its weight cannot be "
                    f"shared out ({nearest(self.plate, site.plates) if site.plates else 'it is in no plate'})"
                )

    def _probe(self) -> dict[str, Tensor]:
        guide = self.guide(self.parameters["phi"])
        return guide.transform(guide.noise((1,), torch.Generator(self.like.device)))

    def exact(self, target: Target) -> Reference | None:
        if not self.truth:
            return None
        stated = found(self.truth)(target)
        if stated is None:
            return None
        gradient = {
            block: {name: self.tensor(stated[block][name]).reshape(leaf.shape) for name, leaf in leaves.items()}
            for block, leaves in self.parameters.items()
            if block in stated
        }
        return Reference(float(stated["value"]), gradient, f"stated by {self.truth}")


def found(source: str) -> Any:
    """What ``module:name`` or ``file.py:name`` stands for.

    Raises:
        SpecError: if it is not there or does not run.
    """
    from ..registry import load

    place, colon, name = source.rpartition(":")
    if not colon:
        raise SpecError(f"cannot read {source!r}: write module:name or file.py:name")
    try:
        module = load(place) if place.endswith(".py") else importlib.import_module(place)
    except ImportError as wrong:
        raise SpecError(f"no module {place!r}: {wrong}") from None
    if not hasattr(module, name):
        public = [each for each in vars(module) if not each.startswith("_")]
        raise SpecError(f"{place} has no {name!r}; {nearest(name, public)}")
    return getattr(module, name)


def _arguments(made: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the user's function returned, as arguments."""
    if isinstance(made, Mapping):
        return (), dict(made)
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], tuple) and isinstance(made[1], Mapping):
        return made[0], dict(made[1])
    return (made if isinstance(made, tuple) else (made,)), {}
