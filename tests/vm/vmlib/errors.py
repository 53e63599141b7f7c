"""Errors of the tool and their exit codes.

VmError (1)
  UsageError (2)
  LostVMError (250)    the VM died, or ssh to it is lost
  BuildError (251)     the image or the kernel cannot be built
  InstallError (252)   the product's `make install` failed in the guest
"""

from pathlib import Path

SERIAL_TAIL_LINES = 20


class VmError(Exception):
    exit_code = 1


class UsageError(VmError):
    exit_code = 2


class LostVMError(VmError):
    exit_code = 250


class BuildError(VmError):
    exit_code = 251


class InstallError(VmError):
    exit_code = 252


def tail_of(path: Path, lines: int = SERIAL_TAIL_LINES) -> str:
    """The last lines of a log, safe to print on a terminal."""
    try:
        data = path.read_bytes()[-65536:]
    except OSError as e:
        return f"(no log: {e})"
    text = data.decode("utf-8", "replace").replace("\r", "")
    shown = text.splitlines()[-lines:]
    return "\n".join("".join(c for c in line if c.isprintable() or c == "\t") for line in shown)


def lost_vm(reason: str, serial_log: Path) -> LostVMError:
    where = f"serial log: {serial_log}, its last {SERIAL_TAIL_LINES} lines:"
    return LostVMError(f"{reason}\n{where}\n{tail_of(serial_log)}")
