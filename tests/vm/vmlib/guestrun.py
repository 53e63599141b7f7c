"""Run a test command in the guest so that it does not outlive an interrupted tool."""

import contextlib
import secrets
import shlex
import subprocess
import sys

from vmlib.instance import Instance, run_ssh
from vmlib.sync import GUEST_SRC

KILL_TIMEOUT_S = 20.0


def guest_line(words: list[str], variables: list[str], pid_file: str) -> str:
    """The shell line for the guest: note the process group while the command runs.

    The shell stays its parent, for ssh would report a command that a signal ended as 255.
    """
    argv = ["sh", "-c", words[0]] if len(words) == 1 else words
    command = shlex.join(["env", *variables, *argv])
    # sshd here is exempt from OOM kills (guest/etc/systemd), and its children inherit that.
    begin = f"echo 0 >/proc/self/oom_score_adj; echo $$ >{pid_file}; cd {GUEST_SRC} && {command}"
    return f"{begin}; status=$?; rm -f {pid_file}; exit $status"


def run_in_guest(instance: Instance, words: list[str], variables: list[str]) -> int:
    pid_file = f"/run/vm-tool-{secrets.token_hex(6)}.pid"
    ssh = instance.ssh()
    argv = ssh.argv(guest_line(words, variables, pid_file), tty=sys.stdin.isatty())
    try:
        status = run_ssh(instance, argv)
    except (KeyboardInterrupt, SystemExit):
        # sshd makes the command a session of its own, so its pid names a process group.
        kill = f"kill -TERM -- -$(cat {pid_file}); sleep 1; kill -KILL -- -$(cat {pid_file})"
        with contextlib.suppress(subprocess.TimeoutExpired):
            ssh.run(f"{kill}; rm -f {pid_file}", KILL_TIMEOUT_S)
        raise
    return status
