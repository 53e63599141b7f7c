"""memcg_bpf_ops: soft memory limits in the kernel, on kernels that have it (no released one does).

Two forms were posted and differ in members and in how a cgroup is named: bpf-next RFC v6 (4 Feb 2026) and v7
(26 May 2026). Which one a kernel has is read from its BTF, never from its version.

One attachment covers a cgroup and all below it. Attach top-down: a tier's or session's cgroup with
`override`, then what is to differ inside of it; the kernel refuses any other order with EBUSY.
"""

from __future__ import annotations

import os

from agentrun.base.errors import BpfError
from agentrun.base.paths import Paths
from agentrun.bpf import btf, modules, pins, syscall
from agentrun.bpf.types import MemcgPolicy

STRUCT = "memcg_bpf_ops"
OPS = "agentrun_memcg_ops"
POLICIES = "ar_memcg_policies"
_MEMBER_OF_FORM = {"get_high_delay_ms": 6, "memcg_charged": 7}
_ALLOW_OVERRIDE = 1 << 0  # BPF_F_ALLOW_OVERRIDE
_CGROUP_FD = 1 << 7  # BPF_F_CGROUP_FD of v7: the target is a cgroup
_STRUCT_OPS_MAP = 26  # enum bpf_map_type


def probe() -> int | None:
    """The form of memcg_bpf_ops that the running kernel has: 6 or 7; None without it."""
    members = btf.struct_members(STRUCT) or []
    return next((form for member, form in _MEMBER_OF_FORM.items() if member in members), None)


def module() -> modules.Module:
    """The module for the running kernel. Raises BpfError where it has no memcg_bpf_ops."""
    form = probe()
    if form is None:
        raise BpfError(
            "use memcg_bpf_ops: this kernel has no such struct_ops type; memory.high is used instead"
        )
    return modules.MODULES[f"memcg_ops_v{form}"]


def load(paths: Paths) -> bool:
    """Load the object for the running kernel; False where it was loaded already. Raises BpfError."""
    return modules.load(paths, module())


def unload(paths: Paths) -> bool:
    """Detach from every cgroup and forget; False where nothing was loaded. Raises BpfError."""
    forms = [modules.MODULES[f"memcg_ops_v{form}"] for form in _MEMBER_OF_FORM.values()]
    unloaded = [modules.unload(paths, each) for each in forms]
    return any(unloaded)


class MemcgOps:
    """The loaded object: attach it to cgroups, say what is wanted of each, and `close` it."""

    def __init__(self) -> None:
        chosen = module()
        status = modules.status(chosen)
        if status.loaded is None:
            raise BpfError(f"use memcg_bpf_ops: not loaded (agentrunctl bpf load {chosen.name})")
        self.form = int(chosen.name.removeprefix("memcg_ops_v"))
        self.directory = f"{chosen.directory}/{status.loaded}"
        self._ops = pins.open_map(f"{self.directory}/map_{OPS}", OPS, _STRUCT_OPS_MAP)
        self._policies = pins.open_map(f"{self.directory}/map_{POLICIES}", POLICIES)

    def close(self) -> None:
        """Let go; attachments and policies stay."""
        self._ops.close()
        self._policies.close()

    def _link_path(self, cgroup: str) -> str:
        return f"{self.directory}/link_{os.stat(cgroup).st_ino}"

    def attach(self, cgroup: str, *, override: bool) -> None:
        """Attach to a cgroup; `override` lets cgroups below it be attached to as well. Raises BpfError."""
        flags = _ALLOW_OVERRIDE if override else 0
        fd = os.open(cgroup, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            if self.form == 6:
                link = syscall.link_struct_ops(self._ops.fd, relative_fd=fd, flags=flags)
            else:
                link = syscall.link_struct_ops(self._ops.fd, target_fd=fd, flags=flags | _CGROUP_FD)
        finally:
            os.close(fd)
        try:
            syscall.obj_pin(link, self._link_path(cgroup))
        finally:
            os.close(link)

    def detach(self, cgroup: str) -> None:
        """Detach from a cgroup before this returns; one that is not attached is no error.

        Unlinking the pin alone detaches only after an RCU grace period and a work item (bpf_free_inode,
        bpf_link_put), and until then the kernel refuses the next attachment with EBUSY.
        """
        path = self._link_path(cgroup)
        try:
            link = syscall.obj_get(path)
        except BpfError as error:
            if syscall.is_missing(error):
                return
            raise
        try:
            syscall.link_detach(link)
        finally:
            os.close(link)
        os.unlink(path)

    def set_policy(self, cgroup: str, policy: MemcgPolicy) -> None:
        """Say what is wanted of a cgroup's subtree from now on."""
        self._policies.update(_key(cgroup), bytes(policy))

    def policy(self, cgroup: str) -> MemcgPolicy | None:
        """What is wanted of a cgroup, with its counters; None without an entry."""
        found = self._policies.lookup(_key(cgroup))
        return None if found is None else MemcgPolicy.from_buffer_copy(found)

    def clear_policy(self, cgroup: str) -> None:
        """Want nothing of a cgroup any more."""
        self._policies.delete(_key(cgroup))


def _key(cgroup: str) -> bytes:
    return syscall.id_key(os.stat(cgroup).st_ino)
