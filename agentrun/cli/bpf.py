"""`agentrunctl bpf`: what is loaded, load it, take it out."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from agentrun.base.errors import AgentrunError, BpfError
from agentrun.base.paths import Paths, host_paths
from agentrun.bpf import modules, ringbuf, scheduler
from agentrun.decision import inforce
from agentrun.terminal import plain


@click.group("bpf")
def bpf() -> None:
    """The eBPF modules: see, load, unload. Loaded once, they stay until a reboot or `unload`."""
    if os.geteuid() != 0:
        raise AgentrunError("eBPF needs root")


def _chosen(names: tuple[str, ...]) -> list[modules.Module]:
    if not names:
        return [module for module in modules.MODULES.values() if module.default]
    for name in names:
        if name not in modules.MODULES:
            raise BpfError(f"no module {name!r}, known: {', '.join(modules.MODULES)}")
    return [modules.MODULES[name] for name in names]


def _describe(status: modules.Status) -> str:
    if status.loaded is None:
        return "not loaded" if status.file else "not installed"
    if status.dead:
        return f"dead: {', '.join(status.dead)} (load it again)"
    return "in force" if status.current else "in force, an older version (load brings the installed one)"


def _as_json(status: modules.Status) -> dict[str, Any]:
    return {
        "module": status.module.name,
        "installed": status.hash,
        "loaded": status.loaded,
        "in_force": status.in_force,
        "dead": status.dead,
        "lost": status.lost,
        "programs": {
            p.name: {"id": p.info.id, "tag": p.info.tag, "verified_insns": p.info.verified_insns}
            for p in status.programs
        },
    }


@bpf.command("status")
@click.option("--json", "as_json", is_flag=True, help="As JSON.")
def show_status(as_json: bool) -> None:
    """Say which modules are in force, and how many events were dropped."""
    found = [modules.status(module) for module in modules.MODULES.values()]
    dropped = ringbuf.dropped() if ringbuf.is_loaded() else {}
    if as_json:
        click.echo(json.dumps({"modules": [_as_json(s) for s in found], "dropped": dropped}, indent=2))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("MODULE", "STATE", "PROGRAMS", "WHAT"):
        table.add_column(column, overflow="fold")
    for status in found:
        row = (status.module.name, _describe(status), str(len(status.programs)), status.module.what)
        table.add_row(*map(plain, row))
        for text in status.lost:
            table.add_row("", plain(f"without: {text}"), "", "")
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    if dropped.get("all"):
        click.echo("events dropped: " + ", ".join(f"{name} {n}" for name, n in dropped.items() if n))


def _load(paths: Paths, module: modules.Module) -> bool:
    """Load one module; the scheduler has a way of its own, for the kernel may have thrown it out."""
    return scheduler.load(paths) if module is scheduler.MODULE else modules.load(paths, module)


def _unload(paths: Paths, module: modules.Module) -> bool:
    """Unload one module; agentrund is told not to load the scheduler again."""
    return scheduler.unload(paths) if module is scheduler.MODULE else modules.unload(paths, module)


@bpf.command()
@click.argument("names", nargs=-1, metavar="[MODULE]...")
@click.option(
    "--at-boot",
    is_flag=True,
    help="As `enforcement` in config.toml says: with `auto`, all that can be loaded.",
)
def load(names: tuple[str, ...], at_boot: bool) -> None:
    """Bring the installed version of all modules, or of those named, in force. Idempotent."""
    paths = host_paths()
    configuration = inforce.load(paths)
    choice = configuration.enforcement
    if at_boot and not configuration.uses_bpf:
        click.echo(f"enforcement = {choice!r}: nothing is loaded")
        return
    failed = []
    for module in _chosen(names):
        try:
            if at_boot and modules.status(module).file is None:
                continue
            changed = _load(paths, module)
        except BpfError as error:
            if module.bonus and not names:
                click.echo(f"{module.name}: not on this kernel ({str(error).splitlines()[0]})")
            else:
                failed.append(str(error))
            continue
        click.echo(f"{module.name}: {'loaded' if changed else 'was in force'}")
        for text in modules.status(module).lost:
            click.echo(f"{module.name}: without: {text}")
    # What this kernel lacks is no failure of the host's. What was asked for by name is: agentrund tries anew.
    if failed and at_boot and choice == "auto" and not names:
        click.echo("\n".join(failed), err=True)
    elif failed:
        raise BpfError("\n".join(failed))


@bpf.command()
@click.argument("names", nargs=-1, metavar="[MODULE]...")
def unload(names: tuple[str, ...]) -> None:
    """Take all modules, or those named, out of the kernel. Profiles of running calls no longer hold then."""
    for module in _chosen(names) if names else list(modules.MODULES.values()):
        if _unload(host_paths(), module):
            click.echo(f"{module.name}: unloaded")
