"""What a host must have for a trace. Each missing thing is one message: what, why, how to get it."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from agentrun.base.errors import TraceError

_HOST_CGROUP_INODE = 1  # of the hierarchy's root; a cgroup namespace's root is another directory (cgroup.c)
_EVENTS = ("/sys/kernel/tracing/events", "/sys/kernel/debug/tracing/events")


def check(euid: int, release: str, cgroup_root: str, root: str = "") -> None:
    """Raise TraceError for the first thing that is missing, bcc apart. `root` is where / is (tests)."""
    if euid != 0:
        raise TraceError("trace: needs root: it loads eBPF programs and sees what every call does")
    if not has_headers(release, root):
        raise TraceError(
            f"trace: no headers of the running kernel (/lib/modules/{release}/build), which bcc compiles its"
            f" programs with: apt install linux-headers-{release} (Fedora: kernel-devel-{release})"
        )
    if not any(os.path.isdir(root + path) for path in _EVENTS):
        raise TraceError(
            "trace: no tracefs, where bcc looks up the kernel's tracepoints:"
            " mount -t tracefs tracefs /sys/kernel/tracing"
        )
    if is_namespaced(cgroup_root):
        raise TraceError(
            f"trace: {cgroup_root!r} is the root of a cgroup namespace: probes see a task's place in the"
            " whole hierarchy, so run it on the host itself"
        )


def has_headers(release: str, root: str = "") -> bool:
    """Whether bcc will find headers of the running kernel, where it looks for them (kbuild_helper.cc)."""
    modules = f"{root}/lib/modules/{release}"
    places = [f"{modules}/build", f"{modules}/source", os.environ.get("BCC_KERNEL_SOURCE", "")]
    if any(place and os.path.exists(f"{place}/include/linux/kconfig.h") for place in places):
        return True
    return os.path.exists(root + "/sys/kernel/kheaders.tar.xz")  # CONFIG_IKHEADERS


def is_namespaced(cgroup_root: str) -> bool:
    """Whether this process sees only a part of the cgroup hierarchy; the mount itself need not be there."""
    try:
        return os.stat(cgroup_root).st_ino != _HOST_CGROUP_INODE
    except OSError:
        return False


def import_bcc(name: str = "bcc") -> Any:
    """The module bcc. Raises TraceError where it is missing, or is PyPI's bcc, which is something else."""
    get = "apt install python3-bpfcc (Fedora: python3-bcc); it is not on PyPI"
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: the module is there, its libbcc.so.0 is not
        raise TraceError(
            f"trace: no bcc for {sys.executable}, which compiles and attaches the probes ({error}): {get}"
        ) from error
    if not hasattr(module, "BPF"):
        where = getattr(module, "__file__", "?")
        raise TraceError(f"trace: the module {name} at {where!r} is not BPF's bcc: {get}")
    return module
