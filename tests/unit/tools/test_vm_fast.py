"""tests/vm, the fast guest: its command line, its hardware, and when a cached kernel counts."""

import argparse
import os
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "vm"))

from vmlib import cli, fastdisk, machine, paths, uml, umlkernel
from vmlib.errors import BuildError, UsageError
from vmlib.image import Image
from vmlib.machine import Hardware, fast_hardware
from vmlib.stamp import write_stamp

SHOWN = """\
Package: linux-source
Version: 9.4.1-1~bpo13+1
Depends: linux-source-9.4
Description-en: Linux kernel source (meta-package)
"""


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("AGENTRUN_VM_CACHE", str(tmp_path))
    return paths.cache_dir()


def hardware_of(*options: str) -> Hardware:
    parser: argparse.ArgumentParser = cli._parser()
    return cli._hardware(parser.parse_args(["up", *options]))


def test_a_kernel_command_line_has_memory_disk_and_network() -> None:
    argv = uml.kernel_argv(Path("/c/linux"), 2 << 30)
    assert argv[0] == "/c/linux"
    assert {"mem=2048M", "ubd0=cow,disk.raw", "seccomp=on", "noreboot", "panic=-1"} <= set(argv)
    assert any(word.startswith("vec0:transport=raw,") for word in argv)
    # It is split at spaces again, so that no path may be in it.
    assert not any(" " in word or "/" in word.replace("/dev/ubda", "") for word in argv[1:])


def test_a_guest_is_contained_in_a_user_namespace_only_without_root() -> None:
    assert "--user" not in uml.contain(is_root=True)
    assert {"--user", "--net", "--pid", "--kill-child"} <= set(uml.contain(is_root=False))


@pytest.mark.parametrize(
    ("text", "mib"), [("4G", 4096), ("4g", 4096), ("512M", 512), ("512", 512), ("2048K", 2), ("1GB", 1024)]
)
def test_memory_sizes_are_those_of_qemu(text: str, mib: int) -> None:
    assert uml.parse_memory(text) == mib << 20


@pytest.mark.parametrize("text", ["", "G", "-1", "4 G", "many"])
def test_what_is_no_memory_size_is_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError, match="memory size"):
        uml.parse_memory(text)


def test_memory_goes_elsewhere_when_it_does_not_fit(tmp_path: Path) -> None:
    assert uml.unfit_for_memory(tmp_path, 1, 0) is None
    assert "room for" in (uml.unfit_for_memory(tmp_path, 1 << 60, 0) or "")
    assert "room for 0 MiB" in (uml.unfit_for_memory(tmp_path, 1 << 20, 1 << 60) or "")
    assert "No such file" in (uml.unfit_for_memory(tmp_path / "absent", 1, 0) or "")


@pytest.mark.parametrize("options", [["--smp", "2"], ["--tcg-thread", "single"], ["--smp", "1"]])
def test_emulated_hardware_does_not_combine_with_fast(options: list[str]) -> None:
    with pytest.raises(UsageError, match="--fast: the guest has one CPU"):
        hardware_of("--fast", *options)


def test_hardware_is_what_the_options_say() -> None:
    assert hardware_of() == Hardware()
    assert hardware_of("--fast", "--mem", "2G") == fast_hardware("2G")
    assert "fast" in str(fast_hardware())


@pytest.mark.parametrize(
    ("actual", "wanted", "serves"),
    [
        (fast_hardware(), Hardware(), True),
        (fast_hardware("2G"), fast_hardware(), True),
        (fast_hardware(), fast_hardware("2G"), False),
        (fast_hardware(), Hardware(smp=4), False),
        (Hardware(), fast_hardware(), False),
        (Hardware(smp=4), Hardware(), True),
        (Hardware(), Hardware(smp=4), False),
    ],
)
def test_a_running_machine_serves_what_it_is_and_the_default(
    actual: Hardware, wanted: Hardware, serves: bool
) -> None:
    assert actual.serves(wanted) is serves


def test_an_option_that_did_not_come_about_is_named() -> None:
    fragment = "# words\nCONFIG_A=y\nCONFIG_B=n\nCONFIG_C=n\nCONFIG_D=y\nCONFIG_E=y\n"
    config = 'CONFIG_A=y\n# CONFIG_B is not set\nCONFIG_D=m\nCONFIG_X="x"\n'
    missing = umlkernel.missing_options(fragment, config)
    assert missing == ["CONFIG_D=y (is m)", "CONFIG_E=y (is n)"]


def test_the_source_is_what_the_metapackage_depends_on() -> None:
    assert umlkernel.source_package(SHOWN) == ("linux-source-9.4", "9.4.1-1~bpo13+1")
    with pytest.raises(BuildError, match="names no package"):
        umlkernel.source_package("Package: linux-source\nVersion: 1\n")


def test_a_kernels_key_depends_on_the_fragment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = umlkernel.kernel_key()
    changed = tmp_path / umlkernel.FRAGMENT.name
    changed.write_text(umlkernel.FRAGMENT.read_text() + "CONFIG_A=y\n")
    assert umlkernel.kernel_key() == before
    monkeypatch.setattr(umlkernel, "FRAGMENT", changed)
    assert umlkernel.kernel_key() != before


def test_the_fragment_asks_for_each_option_once() -> None:
    names = [name for name, _ in umlkernel._OPTION.findall(umlkernel.FRAGMENT.read_text())]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("broken", ["truncated", "absent", "no stamp", "stamp is no JSON"])
def test_a_kernel_counts_only_in_its_stamped_size(cache: Path, broken: str) -> None:
    directory = umlkernel.kernels_dir() / "key"
    directory.mkdir()
    kernel, stamp = directory / umlkernel.KERNEL, directory / umlkernel.STAMP
    kernel.write_bytes(b"x" * 100)
    write_stamp(directory, umlkernel.STAMP, (umlkernel.KERNEL,), source="1")
    assert umlkernel.kernel_is_whole(directory)
    match broken:
        case "truncated":
            kernel.write_bytes(b"x" * 99)
        case "absent":
            kernel.unlink()
        case "no stamp":
            stamp.unlink()
        case _:
            stamp.write_text("{")
    assert not umlkernel.kernel_is_whole(directory)


def test_a_broken_kernel_is_built_again_and_a_whole_one_is_not(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = []

    def build(work: Path, directory: Path) -> None:
        built.append(work.name)
        directory.mkdir(exist_ok=True)
        (directory / umlkernel.KERNEL).write_bytes(b"x" * 100)
        write_stamp(directory, umlkernel.STAMP, (umlkernel.KERNEL,), source="1")

    monkeypatch.setattr(umlkernel, "_build", build)
    kernel = umlkernel.ensure_kernel()
    umlkernel.ensure_kernel()
    assert len(built) == 1
    kernel.write_bytes(b"")
    assert umlkernel.ensure_kernel().stat().st_size == 100
    assert len(built) == 2


def test_old_kernels_and_killed_builds_are_removed(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(umlkernel, "_build", lambda work, directory: directory.mkdir())
    for age_s, name in enumerate((".build-x", "newer", "older")):
        (umlkernel.kernels_dir() / name).mkdir()
        os.utime(umlkernel.kernels_dir() / name, (1000 - age_s, 1000 - age_s))
    kept = umlkernel.ensure_kernel().parent.name
    assert {path.name for path in umlkernel.kernels_dir().iterdir()} == {kept, "newer"}


def test_a_fast_disk_counts_only_in_its_stamped_size(cache: Path) -> None:
    image = Image("key")
    image.directory.mkdir()
    assert not fastdisk.has_fast_disk(image)
    (image.directory / fastdisk.DISK).write_bytes(b"x" * 100)
    write_stamp(image.directory, fastdisk.STAMP, (fastdisk.DISK,))
    assert fastdisk.has_fast_disk(image)
    (image.directory / fastdisk.DISK).write_bytes(b"")
    assert not fastdisk.has_fast_disk(image)


def test_a_pid_counts_only_while_the_process_names_the_pid_file(tmp_path: Path) -> None:
    guest: machine.Machine = uml.Uml(tmp_path)
    assert not guest.is_alive()
    guest.pid_file.write_text("1")
    assert guest.pid() is None
