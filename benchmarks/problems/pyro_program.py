"""A user's Pyro model and guide, run as pure functions of parameters, latents and noise: so they vectorise and differentiate.

Handlers do it (:mod:`.pyro_handlers`). Parameters are substituted wherever torch meets them, whoever holds them (Pyro's store, a PyroModule, a
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

from estimators import Block

from ..randomness import own_randomness
from ..specs import SpecError
from .pyro_handlers import OUTSIDE, FromNoise, Given, Substituted, Values, explained
from .pyro_sites import Noise, Unsupported, bare, noise_of, smooth


@dataclass(frozen=True)
class Site:
    """One random choice of the guide: its noise, its place in plates, and what it allows.

    ``subset`` is the size of a plate's random subset, and 0 for a latent; ``plates`` maps names to dimensions, counted from
    the right of the batch.
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
        self._outside = self.seed
        with (
            own_randomness(self.seed, torch.device("cpu")),
            pyro.get_param_store().scope() as state,
            torch.enable_grad(),
        ):
            with explained("training"):
                self._train()
            with explained("guide"):
                guide = pyro.poutine.trace(self.guide).get_trace(*self.args, **self.kwargs)
                guide.compute_log_prob()
            phi = _leaves(guide)
            drawn_with = _used(guide, phi)
            guide.detach_()  # so that the model is seen to use what it uses itself
            with explained("model"):
                replayed = pyro.poutine.replay(self.model, trace=guide)
                model = pyro.poutine.trace(replayed).get_trace(*self.args, **self.kwargs)
                model.compute_log_prob()
            theta = _leaves(model)
            self.leaves = _apart(theta, _used(model, theta), phi, drawn_with)
        self._state = state
        self.sites = _sites(guide) | _subsets(model) | _subsets(guide)
        self._check_sites(model)
        if not any(site.noise for site in self.sites.values() if not site.subset):
            raise SpecError("the guide draws nothing: it is a point estimate, and has no gradient noise to measure")
        self.unmatched = _unmatched(model, guide)
        self.scales = _scales(guide)
        self.full_sizes = {site.name: site.noise[0].shape[0] for site in self.sites.values() if site.subset}

    def scaled(self, plate: str) -> tuple[str, float] | None:
        """A guide's site whose log-density counts more or less than once, and how often; weights by ``plate`` undo its own."""
        for name, scale in self.scales.items():
            if plate in self.full_sizes and plate in self.sites[name].plates:
                scale *= self.sites[plate].subset / self.full_sizes[plate]
            if abs(scale - 1) > 1e-6:
                return name, scale
        return None

    def _train(self) -> None:
        if not self.steps:
            return
        optimiser = pyro.optim.Adam({"lr": self.learning_rate})
        svi = pyro.infer.SVI(self.model, self.guide, optimiser, loss=pyro.infer.Trace_ELBO())
        for _ in range(self.steps):
            svi.step(*self.args, **self.kwargs)

    def _check_sites(self, model: Any) -> None:
        for name, node in _random(model):
            if name in self.sites:
                continue
            if node["infer"].get("enumerate"):
                raise SpecError(
                    f"latent site {name!r} of the model is summed over by TraceEnum_ELBO, which is not done here: let the "
                    "guide draw it"
                )
            raise SpecError(f"latent site {name!r} of the model is not in the guide")

    @contextmanager
    def scope(self) -> Iterator[None]:
        """Pyro's one global store holds this program's parameters within, and what it held before without."""
        with pyro.get_param_store().scope(self._state), pyro.validation_enabled(False):
            yield

    def _traced(self, function: Callable[..., Any], block: Block, kind: str, handler: Messenger) -> Any:
        """A trace of model or guide at other parameters, with densities computed."""
        mode = Substituted({id(leaf): block[name] for name, leaf in self.leaves[kind].items()})
        device = next(iter(self.leaves["phi"].values())).device
        with (
            explained("model" if kind == "theta" else "guide", mode),
            own_randomness(self._outside, device), self.scope(), mode, handler,
        ):  # fmt: skip
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
        z, trace = self._drawn(phi, noise)
        return z, _total(trace, plate)

    def _drawn(self, phi: Block, noise: Mapping[str, tuple[Tensor, ...]]) -> tuple[Values, Any]:
        """Latents from noise, and the trace of the guide that drew them."""
        dtype = next(iter(phi.values())).dtype
        subsets = {
            name: noise[name][0].argsort()[: site.subset].to(dtype) for name, site in self.sites.items() if site.subset
        }
        handler = FromNoise({name: each for name, each in noise.items() if name not in subsets})
        with Given(subsets):
            trace = self._traced(self.guide, phi, "phi", handler)
        return {name: value.to(dtype) for name, value in handler.drawn.items()} | subsets, trace

    def repeatable(self, theta: Block, phi: Block, noise: Mapping[str, tuple[Tensor, ...]]) -> None:
        """See that no draw and no density depends on random numbers that the program draws by itself.

        It may draw them: a first guess such as ``pyro.param("loc", torch.randn(3))`` is drawn at every call, and used once.

        Raises:
            SpecError: with the first site that does.
        """
        runs: list[list[tuple[str, Values]]] = []
        try:
            for seed in (self.seed + 1, self.seed):
                self._outside = seed
                z, trace = self._drawn(phi, noise)
                given = runs[0][0][1] if runs else z
                model = self.site_densities(theta, given)
                runs.append([("guide", z), ("guide", _densities(trace)), ("model", model)])
        finally:
            self._outside = self.seed
        for (kind, one), (_, other) in zip(*runs, strict=True):
            for site, value in one.items():
                if not torch.equal(value.nan_to_num(), other[site].nan_to_num()):
                    outside = OUTSIDE.format(place="torch.randn, dropout")
                    raise SpecError(f"the {kind}, at site {site!r}, {outside}")

    def site_densities(self, theta: Block, z: Values) -> Values:
        """log p of each site of the model by its name, ``()``, at given latents."""
        return _densities(self._traced(self.model, theta, "theta", Given(z)))

    def guide_densities(self, phi: Block, z: Values) -> Values:
        """log q of each site of the guide by its name, ``()``, at given latents."""
        return _densities(self._traced(self.guide, phi, "phi", Given(z)))

    def placed(self, phi: Block, z: Values) -> Values:
        """The sites that take no noise of their own, as the guide makes them of given others."""
        drawn = {name: value for name, value in z.items() if self.sites[name].noise}  # subsets among them
        trace = self._traced(self.guide, phi, "phi", Given(drawn))
        return {name: trace.nodes[name]["value"] for name, site in self.sites.items() if not site.noise}


def _densities(trace: Any) -> Values:
    return {
        name: node["log_prob_sum"]
        for name, node in trace.nodes.items()
        if node["type"] == "sample" and not isinstance(node["fn"], _Subsample)
    }


def _leaves(trace: Any) -> dict[str, Tensor]:
    """Unconstrained parameters of a trace by name, each once: a module may know one by two names."""
    store = pyro.get_param_store()
    names = [name for name, node in trace.nodes.items() if node["type"] == "param"]
    return dict({id(store._params[name]): (name, store._params[name]) for name in names}.values())


def _used(trace: Any, leaves: Block) -> set[str]:
    """Names of the leaves that a draw or a density of a trace depends on."""
    nodes = [node for node in trace.nodes.values() if node["type"] == "sample"]
    made = [each for node in nodes for each in (node["value"], node["log_prob_sum"]) if _differentiable(each)]
    if not made or not leaves:
        return set()
    slopes = torch.autograd.grad([each.sum() for each in made], list(leaves.values()), allow_unused=True)
    return {name for name, slope in zip(leaves, slopes, strict=True) if slope is not None}


def _differentiable(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _apart(theta: Block, by_model: set[str], phi: Block, by_guide: set[str]) -> dict[str, Block]:
    """Both blocks: what both register, as ``pyro.module`` does with a whole network, belongs to the one that uses it.

    Raises:
        SpecError: for a parameter that both use.
    """
    guides, models = ({id(leaf): name for name, leaf in block.items()} for block in (phi, theta))
    for name, leaf in theta.items():
        if id(leaf) in guides and name in by_model and guides[id(leaf)] in by_guide:
            raise SpecError(
                f"parameter {name!r} is used by model and guide: their gradients are of two blocks here, and it has both"
            )
    only_theta = {n: leaf for n, leaf in theta.items() if n in by_model or guides.get(id(leaf)) not in by_guide}
    only_phi = {n: leaf for n, leaf in phi.items() if n in by_guide or id(leaf) not in models}
    return {"theta": only_theta, "phi": only_phi}


def _unmatched(model: Any, guide: Any) -> str | None:
    """A random site of the guide that the model knows nothing of, directly or through what is made of it; or ``None``.

    Autoguides draw auxiliary numbers and make the model's sites of them, with as many dimensions; log w is then a weight.
    """
    known = {name for name, _ in _random(model)}
    own = [(name, node) for name, node in _random(guide) if name not in known and noise_of(node["fn"])]
    made = [node for name, node in _random(guide) if name in known and not noise_of(node["fn"])]
    if sum(node["value"].numel() for _, node in own) > sum(node["value"].numel() for node in made):
        return own[0][0]
    return None


def _random(trace: Any) -> Iterator[tuple[str, Any]]:
    """Latent sites: neither observed nor the indices of a plate."""
    for name, node in trace.nodes.items():
        if node["type"] == "sample" and not node["is_observed"] and not isinstance(node["fn"], _Subsample):
            yield name, node


def _scales(guide: Any) -> dict[str, float]:
    """By latent site: the factor of its log-density, by ``poutine.scale`` or since a plate sees a random subset."""
    found = {}
    for name, node in _random(guide):
        factors = torch.as_tensor(node["scale"], dtype=torch.float64).flatten()
        found[name] = float(factors[(factors - 1).abs().argmax()])
    return found


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
        (frame,) = (frame for frame in node["cond_indep_stack"] if frame.name == plate)
        # An element of a random subset stands for itself here: its weight is its own, not that of all that were left out.
        log_prob = node["log_prob"] * (frame.size / (frame.full_size or frame.size))
        keep = log_prob.ndim + dims[plate]
        total = total + log_prob.movedim(keep, 0).reshape(log_prob.shape[keep], -1).sum(1)
    return total
