"""What a process says to the kernel of its own memory."""

from __future__ import annotations

from agentrun.kernel.libc import check, libc

_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4  # asm-generic/mman.h
_PR_SET_THP_DISABLE = 41  # linux/prctl.h


def lock_memory() -> None:
    """Keep what this process has touched in memory: whoever reports that a host ran out must not wait for it.

    Without it, a host that runs out evicts our code as well, and each step waits for a disk. Raises OSError
    (no CAP_IPC_LOCK and a low RLIMIT_MEMLOCK).
    """
    check(libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT), "mlockall")


def refuse_huge_pages() -> None:
    """Have the kernel make no huge pages of this process's memory; what it starts does as it does.

    khugepaged runs at nice 19 and holds a process's mmap_lock while it gathers a huge page. On a CPU that
    HIGH kept busy, agentrund's next page fault waited 0.2 s for it, and LOW was killed that much too late.
    Raises OSError (Linux before 3.15).
    """
    check(libc.prctl(_PR_SET_THP_DISABLE, 1, 0, 0, 0), "prctl(PR_SET_THP_DISABLE)")
