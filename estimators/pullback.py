"""Pulling cotangents back through a function: by ``torch.func`` within its transforms, by plain autograd outside them.

Both give the same derivatives. A function transform has a fixed cost of its own, which replicates share under ``vmap`` but
a training step, one estimate at a time, would pay in full.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .trees import tree_leaves, tree_map


def pulled_back(function: Callable[..., tuple[tuple[Tensor, ...], Any]], *primals: Any) -> tuple[Any, Any, Any]:
    """Outputs of ``function(*primals)``, the function that pulls their cotangents back, and what came along.

    Arguments:
        function: gives a tuple of tensors, to be differentiated, and a tree of others, which are handed on as they are.
        primals: trees of tensors.

    Returns:
        the outputs; a function from their cotangents, once, to derivatives shaped as the primals; and the rest.

    Example:
        >>> (square,), back, _ = pulled_back(lambda x: ((x["x"] ** 2,), ()), {"x": torch.tensor([3.0])})
        >>> square, back((torch.tensor([1.0]),))
        (tensor([9.]), ({'x': tensor([6.])},))
    """
    if _within_a_transform():
        return torch.func.vjp(function, *primals, has_aux=True)  # type: ignore[return-value]
    with torch.enable_grad():
        primals = tuple(tree_map(lambda leaf: leaf.detach().requires_grad_(), each) for each in primals)
        outputs, rest = function(*primals)

    def back(cotangents: tuple[Tensor, ...]) -> Any:
        moving = [(out, cotangent) for out, cotangent in zip(outputs, cotangents, strict=True) if out.requires_grad]
        if not moving:
            return tuple(tree_map(torch.zeros_like, each) for each in primals)
        outs, slopes = zip(*moving, strict=True)
        found = iter(torch.autograd.grad(outs, tree_leaves(primals), slopes, materialize_grads=True))
        return tuple(tree_map(lambda _: next(found), each) for each in primals)

    return tuple(out.detach() for out in outputs), back, rest


def _within_a_transform() -> bool:
    """Whether ``vmap``, ``grad`` or the compiler is at work; torch has no public name for asking the first two."""
    return torch.compiler.is_compiling() or torch._C._functorch.peek_interpreter_stack() is not None
