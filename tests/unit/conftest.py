"""What all unit tests share."""

from __future__ import annotations

from controllerhost import host as host
from hypothesis import settings

# A busy machine is not a bug: what must be fast measures its own CPU time.
settings.register_profile("agentrun", deadline=None)
settings.load_profile("agentrun")
