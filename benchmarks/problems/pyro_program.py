"""A user's Pyro model and guide, run as pure functions of parameters, latents and noise: so they vectorise and differentiate.

Three handlers do it. Parameters are substituted wherever torch meets them, whoever holds them (Pyro's store, a PyroModule, a
network registered by ``pyro.module``); latents are given; and draws are made from explicit noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode

from estimators import Block
from estimators.trees import tree_map

from ..references.loop import own_randomness
from ..specs import SpecError
from .pyro_sites import Noise, Unsupported, bare, draw, noise_of, smooth

Values = dict[str, Tensor]
_REQUIRES_GRAD = Tensor.requires_grad.__get__  # type: ignore[attr-defined]


class Substituted(TorchFunctionMode):
    """Within it, every use of certain tensors is a use of others."""

    def __init__(self, replaced: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.replaced = replaced

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _REQUIRES_GRAD:  # pyro.module leaves out what says that it needs no gradient
            return func(*args)
        args, kwargs = tree_map(self._other, args), tree_map(self._other, kwargs or {})
        return func(*args, **kwargs)

    def _other(self, value: Any) -> Any:
        return self.replaced.get(id(value), value) if isinstance(value, Tensor) else value


class Given(Messenger):
    """Latent and subsample sites take the values that are given, those of discrete sites as whole numbers."""

    def __init__(self, values: Values) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if not msg["is_observed"] and msg["name"] in self.values:
            value = self.values[msg["name"]]
            whole = isinstance(msg["fn"], _Subsample) or isinstance(bare(msg["fn"]), torch.distributions.Categorical)
            msg["value"] = value.long() if whole else value
            msg["done"] = True


class FromNoise(Messenger):
    """Latent sites are drawn from the noise that is given, and kept. Subsets of plates are values, not draws."""

    def __init__(self, noise: Mapping[str, tuple[Tensor, ...]]) -> None:
        super().__init__()
        self.noise = noise
        self.drawn: Values = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["name"] not in self.noise:
            return
        noise = self.noise[msg["name"]]
        msg["value"] = draw(msg["fn"], iter(noise))
        self.drawn[msg["name"]] = msg["value"]
        msg["done"] = True


@dataclass(frozen=True)
class Site:
    """One random choice of the guide: its noise, its place in plates, and what it allows.

    ``subset`` is the size of a plate's random subset, and 0 for a latent; ``plates`` maps names to dimensions, counted from the right of the batch.
    """

    name: str
    kind: str
    noise: tuple[Noise, ...]
    smooth: bool
    plates: dict[str, int]
    event_dim: int
    subset: int = 0


@dataclass
class Program:
    """A model and a guide with their arguments, and what a first run found of them.

    Arguments:
        model, guide: as Pyro's SVI takes them.
        args, kwargs: handed to both.
        seed: of the first run, which makes and initialises the parameters.
        steps, learning_rate: of training by Pyro's own ``Trace_ELBO`` and Adam before anything is measured.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    seed: int = 0
    steps: int = 0
    learning_rate: float = 0.01

    def __post_init__(self) -> None:
        self._state: Any = None
        with own_randomness(self.seed, torch.device("cpu")), pyro.get_param_store().scope() as state:
            if self.steps:
                self._train()
            guide = pyro.poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)
            model = pyro.poutine.trace(pyro.poutine.replay(self.model, trace=guide)).get_trace(
                *self.args, **self.kwargs
            )
            self.leaves = {
                block: {name: pyro.get_param_store()._params[name] for name in _params(trace)}
                for block, trace in (("theta", model), ("phi", guide))
            }
        self._state = state
        shared = set(self.leaves["theta"]) & set(self.leaves["phi"])
        if shared:
            raise SpecError(
                f"parameter {sorted(shared)[0]!r} is used by model and guide: say which block it belongs to"
            )
        self.sites = _sites(guide) | _subsets(model)
        missing = [name for name, node in _random(model) if name not in self.sites]
        if missing:
            raise SpecError(f"latent site {missing[0]!r} of the model is not in the guide")
        if not any(site.noise for site in self.sites.values()):
            raise SpecError("the guide draws nothing: it is a point estimate, and has no gradient noise to measure")

    def _train(self) -> None:
        optimiser = pyro.optim.Adam({"lr": self.learning_rate})
        svi = pyro.infer.SVI(self.model, self.guide, optimiser, loss=pyro.infer.Trace_ELBO())
        for _ in range(self.steps):
            svi.step(*self.args, **self.kwargs)

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Pyro's one global store holds this program's parameters within, and what it held before without."""
        with pyro.get_param_store().scope(self._state), pyro.validation_enabled(False):
            yield

    def _traced(self, function: Callable[..., Any], block: Block, kind: str, handler: Messenger) -> Any:
        """A trace of model or guide at other parameters, with densities computed."""
        replaced = {id(leaf): block[name] for name, leaf in self.leaves[kind].items()}
        with self.scope(), Substituted(replaced), handler:
            trace = pyro.poutine.trace(function).get_trace(*self.args, **self.kwargs)
            trace.compute_log_prob()
        return trace

    def model_log_prob(self, theta: Block, z: Values, plate: str | None) -> Tensor:
        """log p(x, z): ``()``, or one for each element of a plate."""
        return _total(self._traced(self.model, theta, "theta", Given(z)), plate)

    def guide_log_prob(self, phi: Block, z: Values, plate: str | None) -> Tensor:
        """log q(z): ``()``, or one for each element of a plate."""
        return _total(self._traced(self.guide, phi, "phi", Given(z)), plate)

    def sample(self, phi: Block, noise: Mapping[str, tuple[Tensor, ...]], plate: str | None) -> tuple[Values, Tensor]:
        """Latents from noise, whole numbers as floating point ones, and log q of them."""
        dtype = next(iter(phi.values())).dtype
        subsets = {
            name: noise[name][0].argsort()[: site.subset].to(dtype) for name, site in self.sites.items() if site.subset
        }
        handler = FromNoise({name: each for name, each in noise.items() if name not in subsets})
        with Given(subsets):
            trace = self._traced(self.guide, phi, "phi", handler)
        return {name: value.to(dtype) for name, value in handler.drawn.items()} | subsets, _total(trace, plate)


def _params(trace: Any) -> list[str]:
    return [name for name, node in trace.nodes.items() if node["type"] == "param"]


def _random(trace: Any) -> Iterator[tuple[str, Any]]:
    """Latent sites: neither observed nor the indices of a plate."""
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and not node["is_observed"] and not isinstance(node["fn"], _Subsample):
            yield name, node


def _plates(node: Any) -> dict[str, int]:
    return {frame.name: frame.dim for frame in node["cond_indep_stack"] if frame.vectorized}


def _sites(trace: Any) -> dict[str, Site]:
    found = {}
    for name, node in _random(trace):
        fn = node["fn"]
        try:
            noise = tuple(noise_of(fn))
        except Unsupported as unsupported:
            raise SpecError(f"guide site {name!r}: {unsupported}") from None
        found[name] = Site(name, type(bare(fn)).__name__, noise, smooth(fn), _plates(node), len(fn.event_shape))
    return found


def _subsets(trace: Any) -> dict[str, Site]:
    """The random subsets that plates take, each a site of its own: uniform numbers whose order gives the indices."""
    found = {}
    for name, node in trace.nodes.items():
        fn = node.get("fn")
        if isinstance(fn, _Subsample) and fn.subsample_size is not None and fn.subsample_size < fn.size:
            found[name] = Site(name, "subset", (Noise("uniform", (fn.size,)),), True, {}, 1, fn.subsample_size)
    return found


def _total(trace: Any, plate: str | None) -> Tensor:
    """The log-density of all sites of a trace together, or apart for each element of a plate."""
    total: Any = 0.0
    for name, node in trace.nodes.items():
        if node["type"] != "sample" or isinstance(node["fn"], _Subsample):
            continue
        if plate is None:
            total = total + node["log_prob_sum"]
            continue
        dims = _plates(node)
        if plate not in dims:
            raise SpecError(f"site {name!r} stands outside plate {plate!r}: its density cannot be shared out over it")
        log_prob = node["log_prob"]
        keep = log_prob.ndim + dims[plate]
        total = total + log_prob.movedim(keep, 0).reshape(log_prob.shape[keep], -1).sum(1)
    return total
