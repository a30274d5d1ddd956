"""Nested tuples and dicts of tensors: noise and latents of more than one stochastic layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.utils import _pytree  # the one that torch.func itself walks; torch has no public name for it yet


def tree_leaves(tree: Any) -> list[Tensor]:
    """The tensors of a nested structure, in order."""
    return _pytree.tree_leaves(tree)


def tree_map(function: Callable[..., Tensor], tree: Any, *others: Any) -> Any:
    """``function`` of each tensor, and of its counterparts in trees of the same shape.

    Example:
        >>> tree_map(lambda x, y: x + y, (1, {"a": 2}), (10, {"a": 20}))
        (11, {'a': 22})
    """
    return _pytree.tree_map(function, tree, *others)
