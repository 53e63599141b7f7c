"""One look at all calls and the limits around them, through descriptors that stay open.

pread(2) of an open cgroup file costs a tenth of opening it anew; nothing here walks the tree. Where the BPF
module `snapshot` is loaded, all calls are read in one system call instead (atonce.py).
"""

from __future__ import annotations

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from agentrun.base.limits import WEIGHT_DEFAULT
from agentrun.bpf.snapshot import Seen
from agentrun.cgroups import layout
from agentrun.cgroups.cgroup import Cgroup, parse_pressure
from agentrun.daemon.call import rank_of
from agentrun.daemon.controller.decisions import WATCH
from agentrun.daemon.controller.model import HOST, Bound, Call, Domain, Rank, Snapshot

# What of some calls is known without reading their files, by the path of their cgroup.
ReadAtOnce = Callable[[Iterable[str]], Mapping[str, Seen]]
_BOUNDS_EVERY_S = 1.0
_BOUND_ROOM = 0.95
_MEMINFO = (b"MemTotal:", b"MemAvailable:", b"SwapFree:")
_FILE_CACHE = (b"inactive_file", b"active_file")
_NUMBER_MOST = 40  # bytes of a number and the blanks before it
_RESERVE_MOST = 0.5  # of a container's limit: what an agent's leaf may keep from the calls


class Files:
    """The files of one directory, each opened on first use; None where one is missing or gone."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fds: dict[str, int] = {}

    def fd(self, name: str) -> int | None:
        """The open descriptor of a file, for epoll."""
        if name not in self._fds:
            try:
                fd = os.open(f"{self.path}/{name}", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            except OSError:
                return None
            self._fds[name] = fd
        return self._fds[name]

    def read(self, name: str) -> bytes | None:
        """The content of a file."""
        fd = self.fd(name)
        if fd is None:
            return None
        try:
            return os.pread(fd, 1 << 16, 0)
        except OSError:  # ENODEV: the cgroup is gone
            return None

    def number(self, name: str) -> int | None:
        """One number; None for `max`."""
        text = (self.read(name) or b"").strip()
        return int(text) if text.isdigit() else None

    def keyed(self, name: str, *keys: bytes) -> dict[bytes, int]:
        """Some numbers of a flat keyed file; those that are there.

        Of sixty lines two or three matter: to take all apart, or to search by regular expressions, was a
        quarter of a look.
        """
        text, found = b"\n" + (self.read(name) or b""), {}
        for key in keys:
            at = text.find(b"\n%b " % key)
            start = at + len(key) + 2
            words = text[start : start + _NUMBER_MOST].split(None, 1) if at >= 0 else []
            if words and words[0].isdigit():
                found[key] = int(words[0])
        return found

    def count(self, name: str, key: bytes) -> int:
        """One of them; 0 where it is missing."""
        return self.keyed(name, key).get(key, 0)

    def pressure(self, kind: str) -> dict[str, tuple[float, int]]:
        """How long `memory`, `cpu` or `io` was waited for (see `parse_pressure`); empty without PSI."""
        return parse_pressure((self.read(f"{kind}.pressure") or b"").decode("ascii", "replace"))

    def close(self) -> None:
        """Let go of all of them."""
        for fd in self._fds.values():
            os.close(fd)
        self._fds.clear()


class Member:
    """A call that takes part: what its state says of it, and its files."""

    def __init__(self, key: str, state: Mapping[str, Any], rank: Rank) -> None:
        limits = state.get("limits") or {}
        self.files = Files(key)
        self.id = str(state.get("id"))
        self.rank = rank
        self.start = float(state.get("start") or 0)
        self.soft: int | None = limits.get("memory_high")
        self.ceiling: int | None = limits.get("memory")
        self.adaptive = bool(limits.get("memory_adaptive"))
        learned = (state.get("learned") or {}).get("memory_high")
        self.learned: int | None = learned if self.soft is None else None
        self.weight = int(limits.get("cpu_weight") or WEIGHT_DEFAULT)
        self.may_boost = (state.get("care") or {}).get("boost") is not False

    def is_populated(self) -> bool:
        """Whether anything lives in the call."""
        return self.files.count("cgroup.events", b"populated") == 1

    def cpu_s(self) -> float:
        """The CPU time of the call so far."""
        return self.files.count("cpu.stat", b"usage_usec") / 1e6

    def look(self) -> Seen:
        """What the call's files say."""
        if not self.is_populated():
            return Seen(0, 0, False)
        high = self.files.count("memory.events", b"high")
        return Seen(self.files.number("memory.current") or 0, high, True)

    def call(self, seen: Seen, domains: tuple[str, ...]) -> Call | None:
        """The call as it was seen; None when nothing lived in it (or not yet)."""
        if not seen.is_populated:
            return None
        return Call(
            self.files.path,
            self.rank,
            self.start,
            seen.usage,
            domains,
            self.soft,
            self.ceiling,
            seen.high,
            self.adaptive,
            self.learned,
        )


class Reader:
    """All members and the limits around them. `update` first, then `read` as often as needed."""

    def __init__(
        self, cgroup_root: str, proc: str = "/proc", at_once: ReadAtOnce = lambda members: {}
    ) -> None:
        self.root = cgroup_root
        self._at_once = at_once
        self.members: dict[str, Member] = {}
        self._above: dict[str, Files] = {}
        self._ids: dict[str, int | None] = {}  # of the cgroups above, when their files were opened
        self._chains: dict[str, tuple[str, ...]] = {}
        self.unused: dict[str, Files] = {}
        self.used: dict[str, int] = {}  # by each domain of the last `read`, as `peek` tells it
        self._proc = Files(proc)
        self._bounds_at = float("-inf")

    def update(self, live: Mapping[str, Mapping[str, Any]]) -> tuple[list[Member], list[Member]]:
        """Take part in these calls (state by cgroup path) from now on; returns (new, gone) members.

        Who watches their descriptors closes the files of those gone, and what is then in `unused`.
        """
        ids = {key: str(state.get("id")) for key, state in live.items()}
        gone = [m for key, m in self.members.items() if ids.get(key) != m.id]
        for member in gone:
            del self.members[member.files.path]
        new = []
        for key, state in live.items():
            rank = rank_of(state)
            if key not in self.members and rank is not None:
                self.members[key] = Member(key, state, rank)
                new.append(self.members[key])
        self._follow_chains()
        self._bounds_at = float("-inf")
        return new, gone

    def _follow_chains(self) -> None:
        self._chains = {key: self._ancestors(key) for key in self.members}
        needed = {path for chain in self._chains.values() for path in chain}
        # A container that was restarted has the same path, and nothing of what is open here.
        before, self._ids = self._ids, {path: Cgroup(path).kernel_id() for path in needed}
        kept = {path for path in needed & set(self._above) if before[path] == self._ids[path]}
        self.unused = {path: self._above.pop(path) for path in set(self._above) - kept}
        for path in needed - set(self._above):
            self._above[path] = Files(path)

    def _ancestors(self, key: str) -> tuple[str, ...]:
        """The cgroups above a call, the nearest first, without the root, which has no limit."""
        found = []
        at = key.rpartition("/")[0]
        while at.startswith(self.root + "/"):
            found.append(at)
            at = at.rpartition("/")[0]
        return tuple(found)

    def above(self, key: str) -> Files | None:
        """The files of a domain that is a cgroup."""
        return self._above.get(key)

    def read(self, now: float, *, admits: bool = False) -> Snapshot:
        """Everything as it is now; with `admits` also limits around a single call: more may want in."""
        limits = {
            path: limit
            for path, files in self._above.items()
            if (limit := files.number("memory.max")) is not None
        }
        memory = self._meminfo()
        seen = self._at_once(self.members)
        calls = []
        for key, member in self.members.items():
            domains = tuple(path for path in self._chains[key] if path in limits)
            call = member.call(seen.get(key) or member.look(), (*domains, HOST))
            if call is not None:
                calls.append(call)
        populated = Counter(domain for call in calls for domain in call.domains)
        shared = {domain for domain, count in populated.items() if count > 1 or admits}
        free = memory.get(b"SwapFree:", 0)
        self.used.clear()
        domains_ = [self._domain(path, limit, free) for path, limit in limits.items() if path in shared]
        if HOST in shared and memory:
            domains_.append(_host(memory))
            self.used[HOST] = domains_[-1].usage
        return Snapshot(now, tuple(calls), tuple(domains_), self._bounds(now), admits)

    def peek(self, domain: str) -> int:
        """What a domain uses, file cache included, by the one cheapest read."""
        if domain == HOST:
            return _host(self._meminfo()).usage
        files = self._above.get(domain)
        return (files.number("memory.current") if files else None) or 0

    def _domain(self, path: str, limit: int, swap_free: int) -> Domain:
        files = self._above[path]
        usage = self.used[path] = files.number("memory.current") or 0
        if usage > limit * WATCH:  # memory.stat is dear: it adds up all CPUs and all that is below
            usage = max(0, usage - sum(files.keyed("memory.stat", *_FILE_CACHE).values()))
        swap_max = files.number("memory.swap.max")
        if swap_max is not None and swap_free:
            swap_free = min(swap_free, swap_max - (files.number("memory.swap.current") or 0))
        return Domain(path, limit, usage, max(0, swap_free))

    def _meminfo(self) -> dict[bytes, int]:
        """What is needed of /proc/meminfo, in bytes."""
        return {name: kib * 1024 for name, kib in self._proc.keyed("meminfo", *_MEMINFO).items()}

    def _bounds(self, now: float) -> tuple[Bound, ...]:
        if now - self._bounds_at < _BOUNDS_EVERY_S:
            return ()
        self._bounds_at = now
        parents = {chain[0] for chain in self._chains.values() if chain[0].endswith("/" + layout.CALLS)}
        found = []
        for path in sorted(parents):
            with contextlib.closing(Files(path.rpartition("/")[0])) as container:
                wanted = _bound(container)
            now_, used = (
                self._above[path].number("memory.max"),
                self._above[path].number("memory.current") or 0,
            )
            if wanted is not None and used > wanted * _BOUND_ROOM:
                wanted = now_  # a limit below what is used would kill at once
            found.append(Bound(path, now_, wanted))
        return tuple(found)

    def close(self) -> None:
        """Let go of everything."""
        for files in [*self._above.values(), *(m.files for m in self.members.values()), self._proc]:
            files.close()
        self._above.clear()
        self.members.clear()


def _host(memory: Mapping[bytes, int]) -> Domain:
    total = memory.get(b"MemTotal:", 0)
    return Domain(HOST, total, total - memory.get(b"MemAvailable:", 0), memory.get(b"SwapFree:", 0))


def _bound(container: Files) -> int | None:
    """What all calls of a container together may use, so that its agent always has what is promised to it."""
    limit = container.number("memory.max")
    promised = max(container.number(f"{layout.AGENT}/memory.{name}") or 0 for name in ("min", "low"))
    if limit is None or not 0 < promised <= limit * _RESERVE_MOST:
        return None
    return limit - promised
