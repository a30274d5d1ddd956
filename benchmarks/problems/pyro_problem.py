"""A user's own Pyro model and guide as a problem: every estimator that applies runs on it, unchanged and vectorised."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from estimators import Block, Estimator, Parameters, Target
from estimators.trees import tree_leaves

from ..randomness import own_randomness
from ..specs import SpecError, nearest
from .problem import Problem, Reference
from .pyro_guide import PyroGuide, over_leading

if TYPE_CHECKING:
    from .pyro_audit import Cut
    from .pyro_program import Program

PROBES = 64
"""Draws of the guide at which every site of the model must have a density."""


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
        self.require(bool(program.leaves["phi"]), f"guide {self.q} has no parameters")
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
        with self._named():
            self._try()
        _ = self.moving

    def validate(self) -> None:
        for name in ("model", "q"):
            self.require(bool(getattr(self, name)), f"say which: {name}=file.py:name or module:name")
        self.require(self.steps >= 0, f"steps must not be negative, not {self.steps}")
        self.require(self.learning_rate > 0, f"learning_rate must be positive, not {self.learning_rate}")
        self.require(self.seed >= 0, f"seed must not be negative, not {self.seed}")

    @cached_property
    def program(self) -> Program:
        """Model and guide, run once."""
        from .pyro_handlers import explained
        from .pyro_program import Program

        with own_randomness(self.seed, torch.device("cpu")):
            model = found(self.model)
            with explained(f"model {self.model}"):
                model = model() if inspect.isclass(model) else model
            with explained(f"guide {self.q}"):
                guide = self._guide(model)
            with explained(f"arguments {self.args}"):
                args, kwargs = _arguments(found(self.args)()) if self.args else ((), {})
        with self._named():
            return Program(model, guide, args, kwargs, self.seed, self.steps, self.learning_rate)

    @contextmanager
    def _named(self) -> Iterator[None]:
        """What is said against the program, with its name before it."""
        try:
            yield
        except SpecError as wrong:
            raise SpecError(f"{self.model}, {self.q}: {wrong}") from None

    def _digest(self) -> str:
        """Of the files and modules that are named, so that stored cells are measured anew when one of them changes."""
        places = {
            place for source in (self.model, self.q, self.args, self.truth) if (place := source.rpartition(":")[0])
        }
        files = [getattr(_module(place), "__file__", None) for place in sorted(places)]
        content = [Path(file).read_bytes() for file in files if file]  # a package need not have one
        return hashlib.sha256(b"\0".join(content)).hexdigest()[:12]

    def _guide(self, model: Any) -> Any:
        import pyro.infer.autoguide as autoguides

        if ":" in self.q:
            guide = found(self.q)
            if not inspect.isclass(guide):
                return guide
            return guide(model) if issubclass(guide, autoguides.AutoGuide) else guide()
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

    @cached_property
    def total_points(self) -> int:
        """The same with all of ``plate`` where it takes random subsets: what Pyro's own sums are of."""
        return self.program.full_sizes.get(self.plate, self.points)

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
            if site.subset and site.name != self.plate:
                raise SpecError(
                    f"{self.name}: plate {site.name!r} takes random subsets; weights over plate {self.plate!r} need all of it"
                )
            if not site.subset and self.plate not in site.plates:
                raise SpecError(
                    f"{self.name}: guide site {site.name!r} stands outside plate {self.plate!r}: its weight cannot be "
                    f"shared out ({nearest(self.plate, site.plates) if site.plates else 'it is in no plate'})"
                )

    def _probe(self, count: int = 1) -> dict[str, Tensor]:
        guide = self.guide(self.parameters["phi"])
        return guide.transform(guide.noise((count,), torch.Generator(self.like.device).manual_seed(self.seed)))

    def _try(self) -> None:
        """Run once what estimators run, so that what cannot be vectorised or differentiated is told at once."""
        theta, phi = self.parameters["theta"], self.parameters["phi"]
        generator = torch.Generator(self.like.device).manual_seed(self.seed)
        self.program.repeatable(theta, phi, self.guide(phi).noise((), generator))
        noise = self.guide(phi).noise((2, 2), generator)

        def value(theta: Block, phi: Block, noise: Any) -> Tensor:
            guide = self.guide(phi)
            z = guide.transform(noise)
            return self.log_joint(theta, z).sum() - guide.log_prob_transformed(noise).sum()

        torch.func.vmap(torch.func.grad(value, argnums=(0, 1)), (None, None, 0))(theta, phi, noise)
        try:
            torch.func.grad(lambda phi: self.guide(phi).log_prob(self._probe(2)).sum())(phi)
            opaque = ""
        except SpecError as wrong:  # a flow without an inverse
            opaque = (
                f"{wrong}; without log q of a given draw only total derivatives (reparameterization, iwae) can be had"
            )
        object.__setattr__(self, "_opaque", opaque)
        z = self._probe(PROBES)
        densities = over_leading(z, self.latent_rank, lambda z: self.program.site_densities(theta, self.from_front(z)))
        for name, density in densities.items():
            outside = int((~density.isfinite()).sum())
            if outside:
                raise SpecError(
                    f"model site {name!r} has no density at {outside} of {PROBES} draws of the guide: do its draws leave "
                    "the support, or overflow?"
                )

    @cached_property
    def moving(self) -> dict[str, str]:
        """Sites that the guide makes of others and of a parameter directly, and that parameter: no density shows it."""
        if self._opaque:  # type: ignore[attr-defined]
            return {}
        phi = {name: leaf.clone().requires_grad_() for name, leaf in self.parameters["phi"].items()}
        z = {name: leaf[0] for name, leaf in self._probe().items()}
        found = {}
        for site, value in self.program.placed(phi, self.from_front(z)).items():
            if not value.requires_grad:
                continue
            slopes = torch.autograd.grad(value.sum(), list(phi.values()), retain_graph=True, allow_unused=True)
            named = [name for name, slope in zip(phi, slopes, strict=True) if slope is not None and bool(slope.any())]
            if named:
                found[site] = named[0]
        return found

    @cached_property
    def cuts(self) -> list[Cut]:
        """Derivatives of the program that are not those of its values (:mod:`.pyro_audit`)."""
        from .pyro_audit import cuts

        return [] if self._opaque else cuts(self)  # type: ignore[attr-defined]

    def faults(self, estimator: Estimator) -> list[str]:
        path = "reparameterizable" in estimator.needs
        return [cut.sentence for cut in self.cuts if cut.parameter or path]

    def objects(self, estimator: Estimator) -> str | None:
        if self._opaque and not estimator.total_derivative:  # type: ignore[attr-defined]
            return self._opaque  # type: ignore[attr-defined,no-any-return]
        if self.moving and not estimator.total_derivative:
            site, parameter = next(iter(self.moving.items()))
            return (
                f"guide site {site!r} moves with parameter {parameter!r} while every random draw stays, which no density "
                "shows: only total derivatives (reparameterization, iwae) are right here"
            )
        lost = [cut.sentence for cut in self.cuts if cut.parameter]
        if lost:
            return lost[0]
        others = [target for target in estimator.targets.values() if target is not None and target.name != "elbo"]
        scaled = self.program.scaled(self.plate)
        if scaled and (others or not (estimator.total_derivative or hasattr(estimator, "library"))):
            # Pyro's own losses leave the scale out of their scores.
            return (
                f"log q of guide site {scaled[0]!r} counts {scaled[1]:.3g} times (poutine.scale, or a random subset of a plate), "
                "so its derivative is no score and the mean weight not p(x): only total derivatives of the ELBO "
                "(reparameterization) are right here, and with --plate, where one plate holds every site, all"
            )
        if self.program.unmatched and others:
            return (
                f"guide site {self.program.unmatched!r} has no counterpart in the model, so the mean weight is not p(x): "
                f"{others[0]} means nothing here"
            )
        return None

    def exact(self, target: Target) -> Reference | None:
        if not self.truth:
            return None
        function = found(self.truth)
        try:
            with torch.enable_grad():  # it may well differentiate a value
                stated = function(target)
            if stated is None:
                return None
            gradient = {block: self._stated(block, stated[block]) for block in self.parameters if block in stated}
            return Reference(float(stated["value"]), gradient, f"stated by {self.truth}")
        except SpecError:
            raise
        except Exception as wrong:
            raise SpecError(f"{self.truth} fails for {target}: {type(wrong).__name__}: {wrong}") from wrong

    def _stated(self, block: str, given: Mapping[str, Any]) -> Block:
        """One block of what ``truth`` returned, in the shapes of the parameters, which are unconstrained."""
        found = {}
        for name, leaf in self.parameters[block].items():
            if name not in given:
                raise SpecError(f"{self.truth} gives no {block}.{name}; it gives {', '.join(given) or 'nothing'}")
            value = self.tensor(given[name])
            if value.shape != leaf.shape:
                raise SpecError(
                    f"{self.truth}: {block}.{name} has shape {tuple(value.shape)}, the parameter has {tuple(leaf.shape)}"
                )
            found[name] = value
        return found


def found(source: str) -> Any:
    """What ``module:name`` or ``file.py:name`` stands for.

    Raises:
        SpecError: if it is not there or does not run.
    """
    place, colon, name = source.rpartition(":")
    if not colon:
        raise SpecError(f"cannot read {source!r}: write module:name or file.py:name")
    member: Any = _module(place)
    for part in name.split("."):  # such as vae.model
        if not hasattr(member, part):
            public = [each for each in dir(member) if not each.startswith("_")]
            raise SpecError(f"{place} has no {name!r}; {nearest(part, public)}")
        member = getattr(member, part)
    return member


def _module(place: str) -> ModuleType:
    """What a file or the name of a module stands for; modules may lie where the command is run, as with ``python -m``."""
    from ..registry import findable, load

    try:
        if place.endswith(".py"):
            return load(place)
        findable(Path.cwd())
        return importlib.import_module(place)
    except ImportError as wrong:
        raise SpecError(f"no module {place!r}: {wrong}") from None
    except SpecError:
        raise
    except Exception as wrong:
        raise SpecError(f"{place} does not run: {type(wrong).__name__}: {wrong}") from wrong


def _arguments(made: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the user's function returned, as arguments."""
    if isinstance(made, Mapping):
        return (), dict(made)
    if isinstance(made, tuple) and len(made) == 2 and isinstance(made[0], tuple) and isinstance(made[1], Mapping):
        return made[0], dict(made[1])
    return (made if isinstance(made, tuple) else (made,)), {}
