"""`make install`, `make uninstall`, and an upgrade of an installation that was laid out in another way."""

from __future__ import annotations

import importlib.util
import json
import marshal
import os
import subprocess
import sys
from pathlib import Path

import pytest
from installing import TREE, make_command

CPYTHON = sys.implementation.cache_tag
# What an older version left: all modules side by side, and a bundle of (name, code) for them.
OLD_MODULES = ("__init__", "calls", "runtime", "daemon", "policy", "controller/__init__", "controller/model")


class Place:
    """Where agentrun is installed to, with /bin/true as its backend."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.library = folder / "usr/libexec/agentrun"
        self.environment = {**os.environ, "AGENTRUN_ROOT": str(folder / "root")}
        (folder / "root/etc/agentrun").mkdir(parents=True)
        (folder / "root/var/log").mkdir(parents=True)
        (folder / "runc").symlink_to("/bin/true")
        config = f'version = 1\nbackends = ["{folder}/runc"]\n'
        (folder / "root/etc/agentrun/config.toml").write_text(config)

    def make(self, target: str) -> None:
        subprocess.run(make_command(target, self.folder), env=self.environment, check=True)

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / "usr" / argv[0]), *argv[1:]]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def files(self) -> set[str]:
        """All files of the library, by their path below it; without what Python itself keeps of modules."""
        paths = [p for p in self.library.rglob("*") if not p.is_dir() and not is_kept(p)]
        return {str(p.relative_to(self.library)) for p in paths}


def is_kept(path: Path) -> bool:
    """Whether Python wrote a file when it imported a module that is there, without -OO."""
    return (
        path.name.endswith(f".{CPYTHON}.pyc") and (path.parents[1] / f"{path.name.split('.')[0]}.py").exists()
    )


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def expected_files() -> set[str]:
    """What the library has to consist of: all packages, compiled as well; entry, bundle and objects."""
    found = {"oci.py", "hotpath.bin", "bpf/trace.bcc.c"}
    found |= {f"bpf/{p.name}" for p in TREE.glob("bpf/build/*.bpf.o") if p.name != "align.bpf.o"}
    for path in (TREE / "agentrun").rglob("*.py"):
        if "front" in path.parts:
            continue
        name = path.relative_to(TREE)
        found |= {str(name), str(name.parent / "__pycache__" / f"{name.stem}.{CPYTHON}.opt-2.pyc")}
    return found


def check_programs(place: Place) -> None:
    """Each program of ours runs, and the hot path reaches the backend."""
    version = (TREE / "agentrun/__init__.py").read_text().rpartition(' = "')[2].strip('"\n')
    assert place.run("bin/agentrun", "--agentrun-version").stdout == f"agentrun {version}\n"
    ctl = [
        sys.executable,
        str(place.folder / "usr/bin/agentrunctl"),
        "--help",
    ]  # the system's may have no click
    assert "doctor" in subprocess.check_output(ctl, text=True)
    for verb in ("exec", "delete", "state"):
        done = place.run("bin/agentrun", "--root", str(place.folder / "state"), verb, "nothing")
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    text = (place.folder / "usr/sbin/agentrund").read_text()
    code = text.replace("\nmain()", "\nprint(main.__module__)")
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "agentrun.daemon.main\n"
    assert not list((place.folder / "root/var/log").iterdir())


def test_library_holds_the_packages_and_nothing_else(place):
    place.make("install")
    assert place.files() == expected_files()
    assert [p.name for p in place.library.parent.iterdir()] == ["agentrun"]
    check_programs(place)


def old_installation(place: Place) -> None:
    """What a version with all modules side by side installed; its hot path would say so."""
    magic = importlib.util.MAGIC_NUMBER
    for name in OLD_MODULES:
        path = place.library / "agentrun" / f"{name}.py"
        (path.parent / "__pycache__").mkdir(parents=True, exist_ok=True)
        path.write_text("raise SystemExit('an old module')\n")
        (path.parent / "__pycache__" / f"{path.stem}.{CPYTHON}.opt-2.pyc").write_bytes(magic)
    code = compile("raise SystemExit('the old hot path')", "runtime.py", "exec")
    (place.library / "hotpath.bin").write_bytes(
        magic + marshal.dumps([("__init__", code), ("runtime", code)])
    )
    (place.library / "oci.py").write_text("raise SystemExit('the old entry')\n")
    (place.library / "bpf").mkdir()
    (place.library / "bpf/gone.bpf.o").write_bytes(b"")


def test_upgrade_leaves_nothing_of_the_old_version(place):
    old_installation(place)
    place.make("install")
    assert place.files() == expected_files()
    assert [p.name for p in place.library.parent.iterdir()] == ["agentrun"]
    check_programs(place)


def test_install_that_was_interrupted_is_made_up_for(place):
    for name in (".new", ".old"):
        left = Path(f"{place.library}{name}/agentrun/calls.py")
        left.parent.mkdir(parents=True)
        left.touch()
    place.make("install")
    assert place.files() == expected_files()
    assert [p.name for p in place.library.parent.iterdir()] == ["agentrun"]


def test_install_that_fails_leaves_the_old_version_whole(place, tmp_path):
    old_installation(place)
    before = place.files()
    broken = tmp_path / "tree"
    skipped = ("--exclude=.git", "--exclude=.venv", "--exclude=build", "--exclude=tests", "--exclude=docs")
    packed = subprocess.run(["tar", "-C", TREE, *skipped, "-c", "."], capture_output=True, check=True).stdout
    broken.mkdir()
    subprocess.run(["tar", "-C", broken, "-x"], input=packed, check=True)
    (broken / "agentrun/base/errors.py").unlink()
    command = make_command("install", place.folder, tree=broken)
    done = subprocess.run(command, env=place.environment, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "no module agentrun.base.errors" in done.stderr
    assert place.files() == before


def test_uninstall_leaves_configuration_and_records_only(place):
    place.make("install")
    place.make("uninstall")
    usr = place.folder / "usr"
    assert [p for p in usr.rglob("*") if not p.is_dir()] == []
    assert not place.library.exists()
    compiled = json.loads((place.folder / "root/var/lib/agentrun/config.json").read_text())
    assert compiled["backends"] == [["runc", f"{place.folder}/runc"]]


@pytest.mark.parametrize("can_exchange", [True, False])
def test_switch_puts_a_directory_in_the_place_of_another(tmp_path, monkeypatch, can_exchange):
    from agentrun.front import switch

    if not can_exchange:
        monkeypatch.setattr(switch, "exchange", lambda one, other: False)
    new, live = tmp_path / "new", tmp_path / "live"
    for number in range(3):
        new.mkdir()
        (new / str(number)).touch()
        switch.switch(str(new), str(live))
        assert [p.name for p in live.iterdir()] == [str(number)]
        assert [p.name for p in tmp_path.iterdir()] == ["live"]


def test_switch_takes_the_place_of_a_link(tmp_path):
    from agentrun.front import switch

    for name in ("new", "elsewhere"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    (tmp_path / "live").symlink_to("elsewhere")
    switch.switch(str(tmp_path / "new"), str(tmp_path / "live"))
    assert [p.name for p in (tmp_path / "live").iterdir()] == ["new"]
    assert (tmp_path / "elsewhere/elsewhere").exists()
