"""What the host must provide: tools to build and run the image, and a Debian mirror."""

import os
import re
import shutil
import ssl
import subprocess
import urllib.request
from pathlib import Path

from vmlib.errors import BuildError
from vmlib.progress import heartbeat, say
from vmlib.recipe import BACKPORTS, KEYRING, SUITE

# What proves that a package is there -> the Debian package.
RUN_TOOLS = {
    "qemu-system-x86_64": "qemu-system-x86",
    "qemu-img": "qemu-utils",
    "ssh": "openssh-client",
    "scp": "openssh-client",
    "tar": "tar",
    "git": "git",
}
BUILD_TOOLS = RUN_TOOLS | {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "ssh-keygen": "openssh-client",
    "rsync": "rsync",
    KEYRING: "debian-archive-keyring",
}
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def tool(name: str) -> str:
    """The absolute path of a host program; sbin counts even when PATH lacks it."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{SEARCH_PATH}")
    if found is None:
        raise BuildError(f"find {name!r}: not installed")
    return found


def missing_packages(tools: dict[str, str]) -> list[str]:
    path = f"{os.environ.get('PATH', '')}:{SEARCH_PATH}"

    def is_there(name: str) -> bool:
        return Path(name).exists() if name.startswith("/") else bool(shutil.which(name, path=path))

    return sorted({package for name, package in tools.items() if not is_there(name)})


def ensure_tools(tools: dict[str, str]) -> None:
    """Install what is missing, as root with apt-get; else fail with the packages' names."""
    missing = missing_packages(tools)
    if not missing:
        return
    names = " ".join(missing)
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        raise BuildError(f"missing host tools; install the Debian packages: {names}")
    say(f"install host packages: {names}")
    install = ["apt-get", "install", "-y", "-q", "--no-install-recommends", *missing]
    with heartbeat("apt-get"):
        failed = _apt(install).returncode != 0
        if failed:
            # A partly failing update (a foreign source is down) may still be enough.
            _apt(["apt-get", "update", "-q"])
            result = _apt(install)
            if result.returncode != 0:
                raise BuildError(f"install host packages {names}:\n{result.stdout[-2000:]}")
    if still_missing := missing_packages(tools):
        raise BuildError(f"missing host tools after apt-get: {' '.join(still_missing)}")


def _apt(argv: list[str]) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    return subprocess.run(
        argv,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )


def apt_settings() -> dict[str, str]:
    """The host apt's proxy and CA settings, which mmdebstrap would not see by itself."""
    try:
        result = subprocess.run(
            ["apt-config", "dump"], capture_output=True, text=True, errors="replace", check=False
        )
    except OSError:
        return {}
    pattern = re.compile(r'^(Acquire::(?:http|https)::(?:Proxy|CAInfo)) "([^"]+)";$', re.M | re.I)
    return dict(pattern.findall(result.stdout))


def find_mirror() -> str:
    """A Debian archive with the suites we need, from the environment or the host's apt."""
    configured = os.environ.get("AGENTRUN_VM_MIRROR")
    if configured:
        return configured.rstrip("/")
    for uri in _apt_uris():
        if all(_has_suite(uri, suite) for suite in (SUITE, BACKPORTS)):
            return uri
    raise BuildError(
        f"find a Debian mirror: no source of this host's apt has {SUITE} and {BACKPORTS}; "
        "set AGENTRUN_VM_MIRROR"
    )


def _apt_uris() -> list[str]:
    try:
        result = subprocess.run(
            ["apt-get", "indextargets", "--format", "$(REPO_URI)"],
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError as e:
        raise BuildError("find a Debian mirror: no apt-get here; set AGENTRUN_VM_MIRROR") from e
    uris = dict.fromkeys(line.strip().rstrip("/") for line in result.stdout.splitlines())
    return [uri for uri in uris if uri and "security" not in uri]


def _has_suite(uri: str, suite: str) -> bool:
    url = f"{uri}/dists/{suite}/Release"
    if url.startswith(("file:", "copy:")):
        return Path(re.sub(r"^\w+:(//)?", "", url)).exists()
    settings = {name.lower(): value for name, value in apt_settings().items()}
    handlers: list[urllib.request.BaseHandler] = []
    if proxy := settings.get(f"acquire::{url.split(':', 1)[0]}::proxy"):
        handlers.append(urllib.request.ProxyHandler({"http": proxy, "https": proxy}))
    if ca_file := settings.get("acquire::https::cainfo"):
        context = ssl.create_default_context(cafile=ca_file)
        handlers.append(urllib.request.HTTPSHandler(context=context))
    try:
        with urllib.request.build_opener(*handlers).open(url, timeout=20) as response:
            return b"Codename:" in response.read(4096)
    except (OSError, ValueError):
        return False
