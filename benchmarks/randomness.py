"""torch's global generators, for code of others that draws from them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_randomness(seed: int, device: torch.device) -> Iterator[None]:
    """torch's global generator of one device, seeded within and as before without.

    Example:
        >>> before = torch.get_rng_state()
        >>> with own_randomness(7, torch.device("cpu")):
        ...     first = torch.rand(2)
        >>> with own_randomness(7, torch.device("cpu")):
        ...     torch.equal(first, torch.rand(2))
        True
        >>> torch.equal(before, torch.get_rng_state())
        True
    """
    # torch.manual_seed would seed every device there is, and so change generators that are not restored here.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        if device.type == "cpu":
            yield
            return
        module = torch.get_device_module(device)
        index = module.current_device() if device.index is None else device.index
        with torch.random.fork_rng(devices=[index], device_type=device.type):
            with module.device(index):
                module.manual_seed(seed)
            yield
