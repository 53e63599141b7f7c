"""Which image a call's container was made from: for its record, and for what is learned from that.

Looked up here and not at the exec, which has no time to read an engine's files; once for each container.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING

from agentrun.daemon.call import Call
from agentrun.daemon.part import Part
from agentrun.oci import container, engine

if TYPE_CHECKING:
    from agentrun.daemon.daemon import Daemon

_KNOWN_LIMIT = 1024  # containers
_LENGTH_LIMIT = 512


class Images(Part):
    """Notes the image of each call's container."""

    def __init__(self, daemon: Daemon) -> None:
        self.daemon = daemon
        self._known: OrderedDict[tuple[str, str], str | None] = OrderedDict()

    def began(self, call: Call) -> None:
        """Note the image for the call's record, unless it is there (agentrund was started again)."""
        if call.state.get("image") is None:
            image = self._image(str(call.state.get("root")), str(call.state.get("container")))
            if image is not None:
                call.state = {**call.state, "image": image}
                call.unsaved["image"] = image

    def _image(self, root: str, container_id: str) -> str | None:
        key = root, container_id
        if key not in self._known:
            self._known[key] = self._look_up(root, container_id)
            if len(self._known) > _KNOWN_LIMIT:
                self._known.popitem(last=False)
        return self._known[key]

    def _look_up(self, root: str, container_id: str) -> str | None:
        paths = self.daemon.paths
        if not container.is_valid_id(container_id):
            return None
        found = container.find(container_id, root, container.KINDS, paths.cgroup_root)
        if found is None:
            return None
        image = engine.facts_of(found, paths.cgroup_root, paths.root).image
        return None if image is None else image[:_LENGTH_LIMIT]
