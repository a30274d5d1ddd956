"""Handlers that make a Pyro program a function: parameters substituted, latents given, draws made from explicit noise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode

from estimators.trees import tree_map

from ..specs import SpecError
from .pyro_sites import bare, draw, smooth

Values = dict[str, Tensor]
_REQUIRES_GRAD = Tensor.requires_grad.__get__  # type: ignore[attr-defined]
_DATA = Tensor.data.__get__  # type: ignore[attr-defined]


class Substituted(TorchFunctionMode):
    """Within it, every use of certain tensors is a use of others."""

    def __init__(self, replaced: Mapping[int, Tensor]) -> None:
        super().__init__()
        self.replaced = replaced
        self.failed = ""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func == _REQUIRES_GRAD:  # pyro.module leaves out what says that it needs no gradient
            return func(*args)
        args, kwargs = tree_map(self._other, args), tree_map(self._other, kwargs or {})
        if func == _DATA:  # vmap has no other word for it
            return args[0].detach()
        if func == Tensor.__setitem__ and _is_mask(args[1]) and not isinstance(args[2], Tensor):
            # What torch's Multinomial does, and vmap does not know: it has no shapes that depend on values.
            return args[0].masked_fill_(args[1], args[2])
        try:
            return func(*args, **kwargs)
        except Exception as problem:
            if _RANDOM in str(problem):
                # Numbers that nothing depends on, as Program.repeatable has seen to: guesses that only pyro.param's first
                # call takes. A thread of its own is under no vmap, which would forbid them.
                with ThreadPoolExecutor(1) as apart, suppress(Exception):
                    return apart.submit(func, *args, **kwargs).result()
            self.failed = self.failed or getattr(func, "__name__", str(func))
            raise

    def _other(self, value: Any) -> Any:
        return self.replaced.get(id(value), value) if isinstance(value, Tensor) else value


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool


class Watching(Messenger):
    """Remembers the sample site at which a program is."""

    def __init__(self) -> None:
        super().__init__()
        self.site = ""

    def _pyro_sample(self, msg: Any) -> None:
        self.site = msg["name"]


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
        value = draw(msg["fn"], iter(self.noise[msg["name"]]))
        msg["value"] = value if smooth(msg["fn"]) else value.detach()
        self.drawn[msg["name"]] = msg["value"]
        msg["done"] = True


_RANDOM = "called random operation"
OUTSIDE = "draws random numbers outside of pyro.sample ({place}), which no seed of a cell governs"
# What torch says where it cannot vectorise, and what that means to who wrote the program.
_MEANINGS = {
    "data-dependent control flow": "decides by the value of a draw (if, while): write torch.where, which vectorises",
    ".item()": "makes a Python number of a draw (.item(), float(), int()), which neither vectorises nor differentiates",
    _RANDOM: OUTSIDE,
    "Batching rule not implemented": "uses what torch cannot vectorise ({place})",
    "in-place operation": "writes into a tensor that it keeps ({place}), as BatchNorm does in training: call .eval()",
    "dynamic shape": "takes as many elements as the values of a draw say ({place}): write torch.where",
}


@contextmanager
def explained(kind: str, mode: Substituted | None = None) -> Iterator[Watching]:
    """Whatever goes wrong in a program is told in one line, with the site where it was and the reason.

    Raises:
        SpecError: in place of any error.
    """
    watching = Watching()
    try:
        with watching:
            yield watching
    except SpecError:
        raise
    except Exception as problem:
        where = f", at or after site {watching.site!r}," if watching.site else ""
        raise SpecError(f"the {kind}{where} {_meaning(problem, mode)}") from problem


def _meaning(problem: Exception, mode: Substituted | None) -> str:
    place = f"in {mode.failed}" if mode is not None and mode.failed else "somewhere"
    for said, means in _MEANINGS.items():
        if said in str(problem):
            return means.format(place=place)
    # Pyro adds a table of shapes, of many lines.
    text = " ".join(str(problem).partition("Trace Shapes:")[0].split())
    return f"fails: {type(problem).__name__}: {text[:240]}"
