"""What a session is, as policies select it: engine, name, image, cgroup, annotations.

Annotations come with the container's OCI configuration. Its name and image are the engine's own knowledge;
they are read from the engine's files, and only when a policy asks for them:

    docker            <data-root>/containers/ID/config.v2.json (Name, Config.Image, Config.Healthcheck)
    podman, CRI-O     <graphroot>/overlay-containers/containers.json (metadata: name, image-name)
    containerd CRI    annotations io.kubernetes.cri.*; nerdctl: nerdctl/name
"""

from __future__ import annotations

from agentrun.base import fastjson, files

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from agentrun.oci.container import Container

_DOCUMENT_LIMIT = 16 << 20
_DOCKER_ROOT = "/var/lib/docker"
_NAME_ANNOTATIONS = ("nerdctl/name", "io.kubernetes.cri.container-name", "io.kubernetes.container.name")
_IMAGE_ANNOTATIONS = ("io.kubernetes.cri.image-name", "io.kubernetes.cri-o.ImageName", "nerdctl/image")


class SessionFacts:
    """Facts of one container: `engine` is docker, podman, cri-o, kubernetes, containerd or unknown.

    `cgroup` is relative to the cgroup2 mount. `name`, `image` and `is_healthcheck` are looked up on first
    use.
    """

    __slots__ = ("_engine_facts", "annotations", "bundle", "cgroup", "container_id", "engine", "prefix")

    def __init__(
        self,
        engine: str = "unknown",
        cgroup: str = "",
        annotations: dict[str, str] | None = None,
        container_id: str = "",
        bundle: str = "",
        prefix: str = "",
    ) -> None:
        self.engine = engine
        self.cgroup = cgroup
        self.annotations = annotations or {}
        self.container_id = container_id
        self.bundle = bundle
        self.prefix = prefix
        self._engine_facts: dict[str, Any] | None = None

    def _facts(self) -> dict[str, Any]:
        if self._engine_facts is None:
            self._engine_facts = _engine_facts(self)
        return self._engine_facts

    def set_image(self, image: str) -> None:
        """Decide as if the container came from this image."""
        self._engine_facts = {**self._facts(), "image": image}

    @property
    def name(self) -> str | None:
        """The container's name as its engine shows it."""
        found = self._facts().get("name")
        return found if isinstance(found, str) else None

    @property
    def image(self) -> str | None:
        """The image reference the container was made from."""
        found = self._facts().get("image")
        return found if isinstance(found, str) else None

    def is_healthcheck(self, argv: list[Any]) -> bool:
        """Whether a command is the container's own healthcheck (docker's only: others do not say)."""
        return bool(argv) and argv == self._facts().get("healthcheck")


def engine_of(bundle: str, annotations: dict[str, str]) -> str:
    """The engine, by where it keeps bundles and by the annotations it sets."""
    if "/moby/" in bundle:
        return "docker"
    if "io.kubernetes.cri-o.ImageName" in annotations or "io.container.manager" in annotations:
        return "cri-o" if annotations.get("io.container.manager", "cri-o") == "cri-o" else "podman"
    if "/overlay-containers/" in bundle or "/vfs-containers/" in bundle:
        return "podman"
    if "/k8s.io/" in bundle or "io.kubernetes.cri.container-type" in annotations:
        return "kubernetes"
    return "containerd" if "io.containerd.runtime" in bundle else "unknown"


def facts_of(found: Container, cgroup_root: str, prefix: str = "") -> SessionFacts:
    """The facts of a container. A configuration that cannot be read leaves them empty."""
    annotations = found.annotations if found.annotations is not None else read_annotations(found.bundle)
    return SessionFacts(
        engine_of(found.bundle, annotations),
        found.cgroup[len(cgroup_root) :],
        annotations,
        found.container_id,
        found.bundle,
        prefix,
    )


def _read(path: str) -> Any:
    try:
        data = files.read_regular(path, _DOCUMENT_LIMIT)
        return fastjson.loads(data) if data else None
    except (OSError, ValueError):
        return None


def read_annotations(bundle: str) -> dict[str, str]:
    """The annotations in a bundle's config.json; empty where there is none."""
    document = _read(bundle + "/config.json") if bundle else None
    found = document.get("annotations") if isinstance(document, dict) else None
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def _engine_facts(facts: SessionFacts) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if facts.engine == "docker":
        found = _docker_facts(
            _read(f"{facts.prefix}{_DOCKER_ROOT}/containers/{facts.container_id}/config.v2.json")
        )
    elif facts.engine in ("podman", "cri-o"):
        storage = facts.bundle.rpartition("/" + facts.container_id)[0]
        found = _storage_facts(_read(storage + "/containers.json"), facts.container_id)
    for key, names in (("name", _NAME_ANNOTATIONS), ("image", _IMAGE_ANNOTATIONS)):
        for name in names:
            if name in facts.annotations:
                found.setdefault(key, facts.annotations[name])
    return found


def _docker_facts(document: Any) -> dict[str, Any]:
    try:
        config = document["Config"]
        found = {"name": document["Name"].lstrip("/"), "image": config["Image"]}
        test = (config.get("Healthcheck") or {}).get("Test") or []
    except (KeyError, TypeError, AttributeError):
        return {}
    if test[:1] == ["CMD"]:
        found["healthcheck"] = test[1:]
    elif test[:1] == ["CMD-SHELL"]:
        found["healthcheck"] = [*(config.get("Shell") or ["/bin/sh", "-c"]), *test[1:]]
    return found


def _storage_facts(document: Any, container_id: str) -> dict[str, Any]:
    try:
        entry = next(c for c in document if c["id"] == container_id)
        metadata = fastjson.loads(entry["metadata"])
        return {"name": metadata.get("name") or entry["names"][0], "image": metadata.get("image-name")}
    except (StopIteration, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return {}
