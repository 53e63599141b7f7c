"""What runs inside a container: holds the memory and burns the CPU that a plan says, and times each chunk.

Sent as text to `python3 -I -S -c`, so it needs nothing of agentrun and no more than the smallest Python has
(Debian's python3-minimal: no mmap, no ctypes; 3.6 will do). Nothing is mounted, copied or compiled.

    python3 -I -S -c TEXT MODE PLAN CACHE_PERCENT

MODE is `call`, or `agent`, which stays until it is killed. PLAN is `ms,kib,cpu_ms` for each step, joined by
`;`. Prints `start`, then `step KIB MICROSECONDS...` (memory held, time that each new chunk took), then
`done`.
"""

import os
import sys
import time

# malloc maps anything this large on its own (MALLOC_MMAP_THRESHOLD_ keeps it so), and bytearray() writes
# every byte: one chunk is 256 page faults, each charged to the cgroup. Less a header, so that it is 256 and
# not 257.
CHUNK = 1 << 20
HEADER = 64
CACHE_DIRECTORY = "/tmp"  # noqa: S108 - the file has no name


def burn(seconds: float) -> None:
    """Use so much CPU time of this process."""
    end = time.process_time() + seconds
    while time.process_time() < end:
        for _ in range(200):
            pass


def burn_beside(cpu: float, duration: float) -> "tuple[float, list[int]]":
    """Fork what one core cannot burn in `duration`; returns what is left for us, and the children."""
    cores = min(os.cpu_count() or 1, int(cpu / duration + 0.95)) if duration > 0 else 1
    children = []
    for _ in range(cores - 1):
        child = os.fork()
        if child == 0:
            burn(cpu / cores)
            os._exit(0)
        children.append(child)
    return cpu / max(1, cores), children


class Held:
    """The memory held: chunks of anonymous memory, and of page cache in a file without a name."""

    def __init__(self, cache_percent: int) -> None:
        self.cache_percent = cache_percent
        self.anonymous: "list[bytearray]" = []
        self.cached = 0
        self.file = os.open(CACHE_DIRECTORY, os.O_TMPFILE | os.O_RDWR, 0o600) if cache_percent else -1

    def count(self) -> int:
        """Chunks held."""
        return len(self.anonymous) + self.cached

    def shrink(self, chunks: int) -> None:
        """Give back what is above so many chunks."""
        cached = min(self.cached, chunks * self.cache_percent // 100)
        if cached < self.cached:
            self.cached = cached
            os.ftruncate(self.file, cached * CHUNK)
        del self.anonymous[max(0, chunks - self.cached) :]

    def grow(self) -> float:
        """Take one more chunk; returns the seconds that it took."""
        to_cache = self.cached < (self.count() + 1) * self.cache_percent // 100
        began = time.perf_counter()
        if to_cache:
            os.pwrite(self.file, b"x" * CHUNK, self.cached * CHUNK)
            self.cached += 1
        else:
            self.anonymous.append(bytearray(CHUNK - HEADER))
        return time.perf_counter() - began


def own_footprint() -> int:
    """Bytes of anonymous memory that the interpreter itself holds; they count as part of the plan."""
    with open("/proc/self/statm", encoding="ascii") as file:
        resident, shared = file.read().split()[1:3]
    return (int(resident) - int(shared)) * 4096


def follow(held: Held, wanted: int, duration: float, cpu: float) -> None:
    """One step: reach `wanted` chunks evenly over `duration`, burning CPU between them, and report."""
    began = time.monotonic()
    held.shrink(wanted)
    parts = max(1, wanted - held.count())
    cpu, children = burn_beside(cpu, duration)
    took = []
    for part in range(1, parts + 1):
        if held.count() < wanted:
            took.append(held.grow())
        burn(cpu / parts)
        time.sleep(max(0.0, began + duration * part / parts - time.monotonic()))
    for child in children:
        if os.waitpid(child, 0)[1]:
            raise SystemExit(f"replay worker: a child was killed at {held.count()} MiB")
    print("step", held.count() * CHUNK >> 10, *(int(seconds * 1e6) for seconds in took), flush=True)


def main() -> None:
    """Follow the plan."""
    mode, plan, cache_percent = sys.argv[1:4]
    own = own_footprint()
    held = Held(int(cache_percent))
    print("start", flush=True)
    for step in plan.split(";"):
        milliseconds, kib, cpu_ms = map(float, step.split(","))
        wanted = max(0, int(kib * 1024) - own) // CHUNK
        follow(held, wanted, milliseconds / 1000, cpu_ms / 1000)
    print("done", flush=True)
    while mode == "agent":
        time.sleep(3600)


if __name__ == "__main__":
    main()
