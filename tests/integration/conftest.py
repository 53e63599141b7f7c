"""What all integration tests share."""

from __future__ import annotations

import pytest
from runtimes import LOG, leftovers, missing, require


@pytest.fixture(autouse=True, scope="session")
def host():
    """A host that can serve, with an empty log."""
    require(missing())
    LOG.unlink(missing_ok=True)
    yield
    assert leftovers() == []
