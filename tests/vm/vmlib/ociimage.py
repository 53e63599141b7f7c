"""Container images without a registry: a root file system packed as a docker archive.

docker, podman and containerd all load this format, so the three see the same layer.
"""

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

from vmlib.errors import BuildError

PATH_ENV = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
CREATED = "2020-01-01T00:00:00Z"
PASSWD = "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000:app:/home/app:/bin/sh\n"
GROUP = "root:x:0:\napp:x:1000:\n"


def make_busybox_rootfs(busybox: Path, rootfs: Path) -> None:
    """A root file system of one static busybox and links to it for every applet."""
    for name in ("bin", "dev", "etc", "home/app", "proc", "root", "sys", "tmp", "usr", "var"):
        (rootfs / name).mkdir(parents=True)
    (rootfs / "tmp").chmod(0o1777)
    os.chown(rootfs / "home/app", 1000, 1000)
    shutil.copyfile(busybox, rootfs / "bin/busybox")
    (rootfs / "bin/busybox").chmod(0o755)
    (rootfs / "etc/passwd").write_text(PASSWD)
    (rootfs / "etc/group").write_text(GROUP)
    listing = subprocess.run([busybox, "--list-full"], capture_output=True, text=True, check=True)
    for applet in listing.stdout.split():
        link = rootfs / applet
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to("/bin/busybox")


def write_docker_archive(rootfs: Path, name: str, archive: Path) -> None:
    """Pack a root file system as image `name` in docker's archive format."""
    layer = archive.with_suffix(".layer")
    packed = subprocess.run(
        ["tar", "-C", rootfs, "--numeric-owner", "--sort=name", "-cf", layer, "."],
        capture_output=True,
        text=True,
        check=False,
    )
    if packed.returncode != 0:
        raise BuildError(f"pack image {name!r}: {packed.stderr.strip()}")
    with layer.open("rb") as file:
        diff_id = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[attr-defined]  # 3.11's
    config = json.dumps(_image_config(diff_id)).encode()
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(archive, "w") as tar:
        _add_bytes(tar, config_name, config)
        tar.add(layer, "layer.tar")
        _add_bytes(tar, "manifest.json", json.dumps(manifest).encode())
    layer.unlink()


def _image_config(diff_id: str) -> dict[str, object]:
    return {
        "architecture": "amd64",
        "os": "linux",
        "created": CREATED,
        "config": {"Env": [PATH_ENV], "Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
        "history": [{"created": CREATED, "created_by": "tests/vm"}],
    }


def _add_bytes(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
