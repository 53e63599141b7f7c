"""What the image is made of. Everything here is hashed into the image's key."""

SUITE = "trixie"
BACKPORTS = f"{SUITE}-backports"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
DISK_SIZE = "8G"
SMP = 2
MEM = "4G"
SNAPSHOT = "ready"

# A kernel with sched_ext and BTF comes from backports. Its headers, and bpfcc below, are for `agentrunctl
# trace`, which compiles its probes where it runs.
BACKPORTED = ("linux-image-cloud-amd64", "linux-headers-cloud-amd64", "bpftool")

# Nothing that brings mesa (stress-ng): every package costs time in a build that CI starts from nothing.
# All other BPF is compiled on the host.
SYSTEM_PACKAGES = [
    "systemd", "systemd-sysv", "udev", "dbus", "openssh-server", "kmod", "procps", "iproute2",
    "iptables", "nftables", "docker.io", "docker-cli", "podman", "containerd", "runc", "crun",
    "conmon", "netavark", "aardvark-dns", "python3", "python3-click", "python3-rich",
    "python3-yaml", "python3-jsonschema", "python3-pytest", "python3-hypothesis",
    "python3-pyroute2", "python3-tomlkit", "python3-prometheus-client", "python3-bpfcc", "libbpf1",
    "make", "jq", "busybox-static", "strace", "rsync", "socat", "attr",
]  # fmt: skip

AGENTBOX_PACKAGES = ["python3-minimal", "bash", "coreutils", "procps", "dash", "busybox-static"]

# A panic ends qemu (with -no-reboot), so that a dead guest is seen at once.
KERNEL_ARGS = (
    "root=/dev/vda rw console=ttyS0 quiet systemd.show_status=0 mitigations=off "
    "net.ifnames=0 psi=1 nokaslr audit=0 panic=-1"
)


def include_list() -> str:
    backported = [f"{name}/{BACKPORTS}" for name in BACKPORTED]
    return ",".join([*backported, *SYSTEM_PACKAGES])


def machine_args(smp: int, mem: str, tcg_thread: str) -> list[str]:
    """The emulated hardware; a snapshot can only be loaded into the same one."""
    return [
        "-accel", f"tcg,thread={tcg_thread},tb-size=1024",
        "-machine", "q35",
        "-cpu", "max",
        "-smp", str(smp),
        "-m", mem,
        "-nodefaults",
        "-display", "none",
        "-no-reboot",
        "-append", KERNEL_ARGS,
        "-device", "virtio-blk-pci,drive=d0",
        "-device", "virtio-net-pci,netdev=n0",
        "-device", "virtio-rng-pci",
    ]  # fmt: skip
