"""Put a directory in the place of another at once, and remove that. Run by install.sh:

    python3 switch.py NEW LIVE

A runtime command that starts meanwhile finds the old tree or the new one, never a mixture: the hot path of
one version on top of modules of another would fail, and the call would run without limits.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sys

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def exchange(one: str, other: str) -> bool:
    """Swap two directories by renameat2(2); False where the C library or the file system cannot."""
    try:
        function = ctypes.CDLL(None).renameat2
    except AttributeError:
        return False
    status = function(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE)
    return bool(status == 0)


def switch(new: str, live: str) -> None:
    """Have `new` be `live`; what was there before is gone afterwards. Raises OSError."""
    old = live + ".old"
    shutil.rmtree(old, ignore_errors=True)
    if not os.path.isdir(live):
        os.rename(new, live)
        return
    if exchange(new, live):
        old = new
    else:
        os.rename(live, old)  # for a moment there is neither: the front then hands off as the policy says
        os.rename(new, live)
    if os.path.islink(old):  # where it leads is left alone
        os.unlink(old)
    else:
        shutil.rmtree(old)


if __name__ == "__main__":
    switch(*sys.argv[1:])
