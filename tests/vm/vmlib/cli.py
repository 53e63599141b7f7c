"""The command line: parse, act, and turn every outcome into an exit status."""

import argparse
import os
import shlex
import signal
import sys
import time
from pathlib import Path
from types import FrameType

from vmlib.errors import LostVMError, UsageError, VmError
from vmlib.guestrun import run_in_guest
from vmlib.image import current_image
from vmlib.instance import Instance, get_instance, list_instances, run_ssh
from vmlib.kmod import build_modules
from vmlib.lifecycle import bring_up, build, build_fast, take_down
from vmlib.machine import Hardware, fast_hardware
from vmlib.progress import say
from vmlib.recipe import MEM, SMP
from vmlib.sync import install_product, mirror_tree
from vmlib.umlkernel import current_kernel, kernel_is_whole

EPILOG = """\
CMD of one word is a line for the guest's shell; of several, it is run exactly as given.

exit status: the command's own, else
  1    error                  250  the VM died or ssh to it is lost
  2    usage error            251  the image or kernel cannot be built
                              252  make install failed in the guest

environment:
  AGENTRUN_VM_CACHE   the cache (default ~/.cache/agentrun-vm)
  AGENTRUN_VM_MIRROR  a Debian archive (default: from the host's apt configuration)
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vm",
        description="A Debian VM, emulated by qemu or fast by User-Mode Linux, to test agentrun in.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, *, named: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text)
        if named:
            sub.add_argument("--name", default="default", help="the instance (default: default)")
        return sub

    image = add("build", "build the image, or check the one in the cache", named=False)
    image.add_argument("--fast", action="store_true", help="and all that a fast guest needs")
    _add_hardware(add("up", "start an instance"))
    run = add("run", "mirror the work tree to /src, install it, run CMD there")
    _add_hardware(run)
    _add_run_options(run)
    add("ssh", "run CMD in a running instance, or a shell").add_argument(
        "cmd", nargs=argparse.REMAINDER, metavar="[--] CMD..."
    )
    push = add("cp", "copy files; a path in the guest is written with a leading ':'")
    push.add_argument("paths", nargs="+", metavar="SRC... DST")
    pull = add("pull", "copy a file or directory out of the guest")
    pull.add_argument("guest_path")
    pull.add_argument("host_path")
    down = add("down", "end an instance and remove its disk")
    down.add_argument("--all", action="store_true", help="end all instances")
    module = add("module", "build the kernel modules of a directory for the guest", named=False)
    module.add_argument("directory", type=Path)
    add("status", "show the image and the instances", named=False)
    return parser


def _add_hardware(parser: argparse.ArgumentParser) -> None:
    other = "; another value than the default makes a cold boot"
    parser.add_argument(
        "--fast", action="store_true", help="a User-Mode Linux guest: one CPU, no emulation, no BPF programs"
    )
    parser.add_argument("--smp", type=_positive, help=f"CPUs (default {SMP}){other}")
    parser.add_argument("--mem", default=MEM, help=f"memory (default {MEM}){other}")
    parser.add_argument(
        "--tcg-thread",
        choices=("multi", "single", "counted"),
        help="emulator threads (default multi); single is slower but safer when schedulers are loaded often; "
        "counted is single, with a clock that counts the guest's instructions: for figures" + other,
    )


def _add_run_options(parser: argparse.ArgumentParser) -> None:
    state = parser.add_mutually_exclusive_group()
    state.add_argument("--fresh", action="store_true", help="start the instance anew first")
    state.add_argument("--keep", action="store_true", help="use it as it is (the default)")
    parser.add_argument("--no-install", action="store_true", help="skip make install")
    parser.add_argument("--env", action="append", default=[], metavar="K=V", help="set it for CMD")
    parser.add_argument("cmd", nargs=argparse.REMAINDER, metavar="[--] CMD...")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError(text)
    return number


def _command(words: list[str]) -> list[str]:
    return words[1:] if words[:1] == ["--"] else words


def _hardware(args: argparse.Namespace) -> Hardware:
    if args.fast:
        if args.smp is not None or args.tcg_thread is not None:
            raise UsageError(
                "--fast: the guest has one CPU, which is not emulated: no --smp, no --tcg-thread"
            )
        return fast_hardware(args.mem)
    return Hardware(args.smp or SMP, args.mem, args.tcg_thread or "multi")


def _run(args: argparse.Namespace) -> int:
    words = _command(args.cmd)
    if not words:
        raise UsageError("run: no command given")
    variables = list(args.env)
    if any("=" not in variable or variable.startswith("=") for variable in variables):
        raise UsageError("run: --env wants K=V")
    if "CI" in os.environ:
        variables.insert(0, f"CI={os.environ['CI']}")
    instance = get_instance(args.name)
    bring_up(instance, _hardware(args), fresh=args.fresh)
    ssh = instance.ssh()
    try:
        with instance.lock():
            mirror_tree(ssh)
            if not args.no_install:
                install_product(ssh)
    except LostVMError as e:
        raise instance.lost(str(e)) from e
    return run_in_guest(instance, words, variables)


def _ssh(args: argparse.Namespace) -> int:
    instance = get_instance(args.name)
    words = _command(args.cmd)
    line = words[0] if len(words) == 1 else shlex.join(words)
    return run_ssh(instance, instance.ssh().argv(line or None, tty=sys.stdin.isatty()))


def _copy(instance: Instance, paths: list[str]) -> int:
    if len(paths) < 2:
        raise UsageError("cp: want SRC... DST")
    ssh = instance.ssh()
    remote = [f"{ssh.login}{path}" if path.startswith(":") else path for path in paths]
    return run_ssh(instance, ssh.scp_argv(remote[:-1], remote[-1]))


def _down(args: argparse.Namespace) -> int:
    for instance in list_instances() if args.all else [get_instance(args.name)]:
        take_down(instance)
    return 0


def _status() -> int:
    image = current_image()
    if image.is_whole():
        print(f"image {image.key}: {'built' if image.has_snapshot() else 'built, no snapshot'}")
    else:
        print(f"image {image.key}: absent")
    kernel = current_kernel()
    print(f"fast guest's kernel {kernel.name}: {'built' if kernel_is_whole(kernel) else 'absent'}")
    for instance in list_instances():
        state, pid = instance.state(), instance.machine.pid()
        if state is None:
            print(f"{instance.name}: down" if pid is None else f"{instance.name}: starting")
            continue
        uptime_s = int(time.time() - state.started)
        stale = "" if state.key == image.key else f", older image {state.key}"
        port = "" if state.is_fast else f"port {state.port}, "
        print(f"{instance.name}: up, pid {pid}, {port}{uptime_s} s, {state.hardware}{stale}")
    return 0


def _dispatch(args: argparse.Namespace) -> int:
    match args.command:
        case "build":
            image = build(check=True)
            if args.fast:
                build_fast(image)
            say(f"image {image.key} is ready")
            return 0
        case "up":
            state = bring_up(get_instance(args.name), _hardware(args))
            say(f"instance {args.name!r} is up, {state.hardware}")
            return 0
        case "run":
            return _run(args)
        case "ssh":
            return _ssh(args)
        case "cp":
            return _copy(get_instance(args.name), args.paths)
        case "pull":
            return _copy(get_instance(args.name), [f":{args.guest_path}", args.host_path])
        case "down":
            return _down(args)
        case "module":
            for path in build_modules(args.directory):
                say(f"built {path}")
            return 0
        case _:
            return _status()


def _terminate(signum: int, _frame: FrameType | None) -> None:
    # As an exception, so that every half-done step is undone on the way out.
    raise SystemExit(128 + signum)


def main(argv: list[str]) -> int:
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, _terminate)
    args = _parser().parse_args(argv)
    try:
        return _dispatch(args)
    except VmError as e:
        print(f"vm: {type(e).__name__}: {e}", file=sys.stderr)
        return e.exit_code
    except OSError as e:
        print(f"vm: {e}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
