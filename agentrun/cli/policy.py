"""`agentrunctl policy`: check, compile, explain, test and suggest policies."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click
import yaml
from rich.console import Console
from rich.table import Table

from agentrun.base.errors import AgentrunError, ConfigError
from agentrun.base.limits import Limits
from agentrun.base.paths import Paths, host_paths
from agentrun.base.units import parse_duration, parse_number, parse_size, show_number
from agentrun.cgroups import surroundings
from agentrun.cgroups.cgroup import Cgroup
from agentrun.cli.explain import describe, explanation
from agentrun.decision import inforce
from agentrun.decision.decide import Decision, decide
from agentrun.decision.match import ANNOTATION
from agentrun.learning import samples as learned
from agentrun.learning import suggest, usage
from agentrun.oci import container, engine, processdoc
from agentrun.policy import cases as policytest
from agentrun.policy import compiler, hostconfig
from agentrun.policy.reference import json_schema, reference
from agentrun.store import ingest
from agentrun.terminal import plain


@click.group()
def policy() -> None:
    """Check, compile, explain, test and suggest policies."""


def _fail(text: str) -> None:
    click.echo(text, err=True)
    sys.exit(1)


def load_files(files: tuple[Path, ...]) -> dict[str, Any]:
    """Compile the given files, or the host's own. Raises PolicyError or ConfigError."""
    if files:
        return compiler.compile_files(files)
    host = host_paths()
    names = inforce.policy_names(host)
    if names:
        return compiler.compile_files([Path(host.policy, name) for name in names])
    return hostconfig.compile_file(host).policy


@policy.command()
@click.argument("files", nargs=-1, type=click.Path(path_type=Path))
def check(files: tuple[Path, ...]) -> None:
    """Say everything that is wrong with FILES (by default the host's policy and configuration)."""
    try:
        compiled = load_files(files)
        if not files:
            hostconfig.compile_file(host_paths())
    except compiler.PolicyError as error:
        count = len(error.problems)
        _fail(f"{error}\n{count} problem{'s' if count > 1 else ''}")
    except ConfigError as error:
        _fail(str(error))
    else:
        click.echo(
            f"policy {compiled['hash']}: {len(compiled['classes'])} classes, {len(compiled['tiers'])} tiers, "
            f"{len(compiled['rules'])} rules, "
            + ("every container" if compiled["sessions"] is None else f"{len(compiled['sessions'])} sessions")
        )


@policy.command("compile")
def compile_host() -> None:
    """Compile the host's configuration and policy now; the last good one stays in force on a mistake."""
    compiled = inforce.load(host_paths())
    if compiled.problems:
        _fail("\n".join(compiled.problems) + f"\nin force: policy {compiled.policy['hash']}")
    click.echo(f"in force: policy {compiled.policy['hash']}, mode {compiled.mode}")


class _Amount(click.ParamType):  # type: ignore[type-arg] # a plain class before click 8.2
    """A size with a unit, or a number."""

    def __init__(self, name: str) -> None:
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        parsed = parse_size(str(value)) if self.name == "size" else parse_number(str(value))
        if parsed is None:
            self.fail(
                f"{value!r}: expected a {self.name}{', such as 4g' if self.name == 'size' else ''}",
                param,
                ctx,
            )
        return parsed


@policy.command(context_settings={"ignore_unknown_options": True})
@click.option(
    "--policy", "files", multiple=True, type=click.Path(path_type=Path), help="A file to try (repeatable)."
)
@click.option(
    "--container", "container_id", metavar="ID", help="Take session and limits from this container."
)
@click.option("--root", metavar="DIR", help="The backend's state directory, as the engine gives it.")
@click.option("--tier", metavar="T", help="As if the container had this tier.")
@click.option("--annotation", "annotations", multiple=True, metavar="K=V", help="A container annotation.")
@click.option("--image", metavar="NAME", help="The container's image.")
@click.option("--env", "environment", multiple=True, metavar="K=V", help="A variable of the exec.")
@click.option("--user", type=int, default=0, metavar="UID", help="The exec's user.")
@click.option("--cwd", default="/", help="The exec's working directory.")
@click.option("--tty", is_flag=True, help="The exec has a terminal.")
@click.option("--memory", type=_Amount("size"), help="The session's memory limit.")
@click.option("--cpus", type=_Amount("number"), help="The session's CPUs.")
@click.option("--pids", type=int, help="The session's process limit.")
@click.option("--json", "as_json", is_flag=True, help="The decision as JSON.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def explain(files: tuple[Path, ...], command: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Print the plan that COMMAND would get, with the reason for each number."""
    try:
        compiled = load_files(files) if files else inforce.load(host_paths()).policy
        facts, limits = _session(given)
    except (compiler.PolicyError, AgentrunError) as error:
        _fail(str(error))
        return
    if given["tier"] and given["tier"] not in compiled["tiers"]:
        _fail(f"--tier {given['tier']}: no such tier, known: {', '.join(compiled['tiers']) or 'none'}")
    document = {
        "args": list(command),
        "env": list(given["environment"]),
        "cwd": given["cwd"],
        "terminal": given["tty"],
        "user": {"uid": given["user"]},
    }
    process = processdoc.Process(document, None)
    decision = decide(
        compiled, "enforce", facts, process, limits, surroundings.host_limits(), tier=given["tier"]
    )
    if as_json:
        click.echo(json.dumps(describe(decision, compiled), indent=2))
    else:
        _print_decision(decision, compiled, limits)


def _session(given: dict[str, Any]) -> tuple[engine.SessionFacts, Limits]:
    """The session to decide for: a real container's, or a made-up one, with what the options say."""
    host, facts, limits = host_paths(), engine.SessionFacts(), Limits()
    if given["container_id"]:
        found = _find_container(host, given["container_id"], given["root"])
        facts = engine.facts_of(found, host.cgroup_root, host.root)
        limits = surroundings.session_limits(Cgroup(found.cgroup), host.cgroup_root)
    for entry in given["annotations"]:
        key, _, value = entry.partition("=")
        facts.annotations[key if "/" in key else ANNOTATION + key] = value
    if given["image"]:
        facts.set_image(given["image"])
    for name in ("memory", "cpus", "pids"):
        if given[name] is not None:
            setattr(limits, name, given[name])
    return facts, limits


def _find_container(host: Paths, container_id: str, root: str | None) -> container.Container:
    roots = [root] if root else ["/run/docker/runtime-runc/moby", "/run/containerd/runc/k8s.io",
                                 "/run/containerd/runc/default", None]  # fmt: skip
    for candidate in roots:
        found = container.find_by_prefix(container_id, candidate, container.KINDS, host.cgroup_root)
        if found is not None:
            return found
    raise AgentrunError(f"find container {container_id!r}: no backend knows it (see --root)")


def _print_decision(decision: Decision, compiled: dict[str, Any], limits: Limits) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, lines in explanation(decision, compiled, limits):
        for number, line in enumerate(lines):
            table.add_row(label if number == 0 else "", plain(line))
    Console(width=None if sys.stdout.isatty() else 120, highlight=False, markup=False).print(table)


def _since(_: click.Context, __: click.Parameter, value: str) -> float:
    seconds = parse_duration(value)
    if seconds is None:
        raise click.BadParameter(f"{value!r}: expected a duration with a unit, such as 7d")
    return seconds


@policy.command("suggest")
@click.option(
    "--policy",
    "files",
    multiple=True,
    type=click.Path(path_type=Path),
    help="A file to start from (repeatable).",
)
@click.option(
    "--since", default="14d", callback=_since, metavar="TIME", help="Calls that ended in the last ..."
)
@click.option(
    "--min-calls",
    type=click.IntRange(min=1),
    default=usage.LEAST_CALLS,
    show_default=True,
    metavar="N",
    help="Say nothing of kinds with fewer calls.",
)
@click.option("--json", "as_json", is_flag=True, help="What is known and suggested as JSON.")
def suggest_policy(files: tuple[Path, ...], since: float, min_calls: int, as_json: bool) -> None:
    """Print classes and rules that fit what calls used, with the evidence, as a policy file to look at."""
    host = host_paths()
    chosen = files or tuple(Path(host.policy, name) for name in inforce.policy_names(host))
    try:
        compiled = load_files(chosen)
        source = suggest.read_source([path.read_text(encoding="utf-8") for path in chosen], compiled)
        ingest.ingest(host)
        samples = learned.samples(host, time.time() - since)
    except (compiler.PolicyError, AgentrunError, OSError) as error:
        _fail(str(error))
        return
    proposals = suggest.propose(usage.usages(samples, min_calls), source)
    if as_json:
        click.echo(json.dumps([suggest.describe(proposal) for proposal in proposals], indent=2))
        return
    count = sum(1 for proposal in proposals if proposal.name)
    head = [
        f"agentrunctl policy suggest: {len(samples)} calls of the last {show_number(since / 86400)} days, "
        f"{len(proposals)} kinds with at least {min_calls}, {count} suggestions",
        "For a file of its own that is read last (90-learned.yaml): its rules are matched first.",
    ]
    click.echo(suggest.render(proposals, source, head), nl=False)


@policy.command("test")
@click.option(
    "--policy", "files", multiple=True, type=click.Path(path_type=Path), help="A file to try (repeatable)."
)
@click.argument("cases", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def test_cases(files: tuple[Path, ...], cases: Path) -> None:
    """Run the CASES of a YAML file: given a command, environment and tier, expect a plan."""
    try:
        compiled = load_files(files)
        results = policytest.run_file(compiled, cases)
    except (compiler.PolicyError, ConfigError, policytest.CaseError) as error:
        _fail(str(error))
        return
    except yaml.YAMLError as error:
        _fail(f"{cases}: not valid YAML: {error}")
        return
    failed = [result for result in results if result.differences]
    for result in results:
        click.echo(f"{'FAIL' if result.differences else 'ok  '} {result.name}")
        for difference in result.differences:
            click.echo(f"       {difference}")
    click.echo(f"{len(results) - len(failed)} of {len(results)} cases hold")
    if failed:
        sys.exit(1)


@policy.command()
def schema() -> None:
    """Print the JSON Schema of policy files."""
    click.echo(json.dumps(json_schema(), indent=2))


@policy.command("reference")
def print_reference() -> None:
    """Print the reference of all keys, in Markdown."""
    click.echo(reference(), nl=False)
