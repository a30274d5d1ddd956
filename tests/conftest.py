"""What every test shares."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Tests neither read nor write the user's cache; spawned workers inherit the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADEST_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
