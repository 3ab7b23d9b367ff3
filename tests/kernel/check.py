"""``make check-kernel``: a Linux kernel's own NBD client against the daemon, in a guest that is thrown away.

The guest boots Debian's cloud kernel under emulation, attaches exports as /dev/nbd*,
compares every byte, mounts what is on them, and tries to write.  The host says what it
must have found.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from hexz.tools.pack import pack
from tests.peers import Server

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
KEPT = ROOT / "build" / "kernel"
"""Where the kernel stays between runs."""
DEBIAN_KERNEL = "linux-image-cloud-amd64"
MODULES = ("virtio_pci", "virtio_net", "nbd", "ext4", "squashfs", "crc32c_generic")
NBD_OPTIONS = "nbds_max=4 max_part=0"
BOOT_S = 600
SECTOR = 512
"""The kernel's client drops what does not fill a sector: the daemon pads."""


class Device(NamedTuple):
    """One /dev/nbd* of the guest, and what is to be found there."""

    number: int
    export: str
    connections: int
    kind: str
    raw: Path
    files: str


def run(*command: object, cwd: Path | None = None) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, cwd=cwd, check=False)
    if done.returncode:
        raise SystemExit(f"{command[0]}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def install_packages() -> None:
    """What the guest is made of, and what runs it."""
    wanted = (HERE / "debian-packages.txt").read_text().split()
    states = {
        name: subprocess.run(["dpkg-query", "-W", "-f", "${Status}", name], capture_output=True, text=True, check=False)
        for name in wanted
    }
    lacking = [name for name, state in states.items() if "ok installed" not in state.stdout]
    if not lacking:
        return
    if os.geteuid() != 0:
        raise SystemExit(f"install these first: apt-get install {' '.join(lacking)}")
    print(f"installing {' '.join(lacking)}", flush=True)
    run("apt-get", "update", "-qq")
    run("apt-get", "install", "-y", "-qq", "--no-install-recommends", *lacking)


def kernel() -> tuple[Path, Path]:
    """The kernel's image and its modules, from Debian's package; downloaded once."""
    found = sorted(KEPT.glob("boot/vmlinuz-*"))
    if not found:
        KEPT.mkdir(parents=True, exist_ok=True)
        depends = run("apt-cache", "depends", DEBIAN_KERNEL)
        package = re.search(r"Depends: (linux-image-\S+)", depends)
        if package is None:
            raise SystemExit(f"apt does not know {DEBIAN_KERNEL}")
        print(f"downloading {package[1]}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            run("apt-get", "download", package[1], cwd=Path(folder))
            (file,) = Path(folder).glob("*.deb")
            run("dpkg-deb", "-x", file, KEPT)
        found = sorted(KEPT.glob("boot/vmlinuz-*"))
    image = found[-1]
    version = image.name.partition("-")[2]
    (modules,) = [path for path in KEPT.glob(f"**/modules/{version}") if path.is_dir()]
    return image, modules


def with_needs(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """The modules of these names and all that they need, in the order of loading; what is built in is left out."""
    files = {path.stem.replace("-", "_"): path for path in folder.glob("kernel/**/*.ko")}
    order: list[Path] = []

    def add(name: str) -> None:
        path = files.get(name)
        if path is None or path in order:
            return
        needs = re.search(rb"\0depends=([^\0]*)\0", path.read_bytes())
        for need in needs[1].decode().split(",") if needs else ():
            add(need.replace("-", "_"))
        if name == "virtio_pci":
            for helper in ("virtio_pci_legacy_dev", "virtio_pci_modern_dev"):
                add(helper)
        order.append(path)

    for name in names:
        add(name)
    return order


def make_initrd(folder: Path, modules: Path, devices: list[Device], port: int) -> Path:
    """The guest's whole file system."""
    root = folder / "root"
    for name in ("bin", "etc", "modules"):
        (root / name).mkdir(parents=True)
    shutil.copy(HERE / "init", root / "init")
    (root / "init").chmod(0o755)
    busybox = shutil.which("busybox")
    client = shutil.which("nbd-client", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    assert busybox is not None
    assert client is not None
    shutil.copy(busybox, root / "bin" / "busybox")
    shutil.copy(client, root / "bin" / "nbd-client")
    for library in re.findall(r"(/\S+)", re.sub(r"\S+ => ", "", run("ldd", client))):
        target = root / library.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library, target)
    loaded = with_needs(modules, MODULES)
    for path in loaded:
        shutil.copy(path, root / "modules" / path.name)
    options = {"nbd": NBD_OPTIONS}
    lines = [f"{path.stem} {options.get(path.stem, '')}\n" for path in loaded]
    (root / "etc" / "modules").write_text("".join(lines))
    (root / "etc" / "port").write_text(f"{port}\n")
    plan = [f"{d.number} {d.export or '-'} {d.connections} {d.kind or '-'}\n" for d in devices]
    (root / "etc" / "plan").write_text("".join(plan))
    names = "\0".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    initrd = folder / "initrd"
    with initrd.open("wb") as out:
        command = ["cpio", "--quiet", "-0", "-o", "-H", "newc", "-R", "0:0"]
        subprocess.run(command, input=names.encode(), stdout=out, cwd=root, check=True)
    return initrd


def make_tree(folder: Path) -> str:
    """Files of many sizes; what the guest must find them to be."""
    source = random.Random(11)
    sizes = [0, 1, 4095, 4096, 4097, 65_536, 1_000_000, 5_000_000, *(source.randrange(60_000) for _ in range(120))]
    listing = []
    for number, size in enumerate(sizes):
        path = folder / f"d{number % 7}" / f"file{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        text = b"".join(b"%d %d\n" % (number, line) for line in range(size // 10))
        content = (source.randbytes(size // 2) + text)[:size].ljust(size, b"\0")
        path.write_bytes(content)
        listing.append(f"./{path.relative_to(folder)} {hashlib.sha256(content).hexdigest()}\n")
    return hashlib.sha256("".join(sorted(listing)).encode()).hexdigest()


def make_snapshots(folder: Path) -> list[Device]:
    """An ext4 and a squashfs image as snapshots, and a memory stream of an odd length."""
    tree = folder / "tree"
    tree.mkdir()
    files = make_tree(tree)
    ext4, squash, memory = folder / "ext4.raw", folder / "squash.raw", folder / "memory.raw"
    environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    subprocess.run(["mkfs.ext4", "-q", "-d", tree, "-b", "4096", ext4, "32M"], env=environment, check=True)
    run("mksquashfs", tree, squash, "-quiet", "-no-progress", "-no-xattrs", "-noappend")
    memory.write_bytes(random.Random(12).randbytes((1 << 20) + 777) + bytes(8 << 20) + b"end")
    pack(str(ext4), str(folder / "ext4.hxz"), memory=str(memory))
    pack(str(squash), str(folder / "squash.hxz"), compression="zstd", block_size=128 << 10)
    return [
        Device(0, "", 1, "ext4", ext4, files),
        Device(1, "squash", 4, "squashfs", squash, files),
        Device(2, "ext4/memory", 2, "", memory, ""),
    ]


def boot(folder: Path, image: Path, initrd: Path) -> dict[str, list[str]]:
    """Run the guest to its end; its results by name."""
    console = folder / "console"
    accelerator = "kvm" if os.environ.get("KVM") else "tcg"
    command = [
        "qemu-system-x86_64", "-M", f"pc,accel={accelerator}", "-m", "512", "-nographic", "-no-reboot",
        "-kernel", image, "-initrd", initrd, "-append", "console=ttyS0 quiet panic=-1",
        "-nic", "user,model=virtio-net-pci",
    ]  # fmt: skip
    with console.open("wb") as out:
        subprocess.run(
            list(map(str, command)), stdin=subprocess.DEVNULL, stdout=out, stderr=out, timeout=BOOT_S, check=False
        )
    text = console.read_text(errors="replace").replace("\r", "")
    results: dict[str, list[str]] = {}
    for name, value in re.findall(r"RESULT (\S+) (.*)", text):
        results.setdefault(name, []).append(value)
    if "finished" not in results:
        sys.stdout.write(text[-4000:])
    return results


def expected(device: Device) -> dict[str, str]:
    """What the guest must find."""
    content = device.raw.read_bytes()
    content += bytes(-len(content) % SECTOR)
    found = {
        "size": str(len(content)),
        "read-only": "1",
        "bytes": hashlib.sha256(content).hexdigest(),
        "write": "refused",
    }
    return {**found, "files": device.files} if device.kind else found


def main() -> int:
    """Make everything, boot, compare."""
    install_packages()
    image, modules = kernel()
    failed = passed = 0

    def check(what: str, wanted: str, found: list[str]) -> None:
        nonlocal failed, passed
        good = found == [wanted]
        passed, failed = passed + good, failed + (not good)
        print(f"{'ok' if good else 'FAILED'}: {what}" + ("" if good else f": {found}, not {wanted}"), flush=True)

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        devices = make_snapshots(folder)
        snapshots = [folder / "ext4.hxz", folder / "squash.hxz"]
        with Server(*snapshots, "--nbd-port", 0, "--nbd-pad", SECTOR) as server:
            initrd = make_initrd(folder, modules, devices, server.nbd_port)
            results = boot(folder, image, initrd)
        print(f"Linux {results.get('kernel', ['?'])[0]}, nbd-client of this machine")
        for device in devices:
            title = f"/dev/nbd{device.number}, export {device.export!r}, connections: {device.connections}"
            for what, wanted in expected(device).items():
                shown = f"{what} ({device.kind} mounted)" if what == "files" else what
                check(f"{title}: {shown}", wanted, results.get(f"{device.number}.{what}", []))
        check("no trouble in the guest's log", "none", results.get("trouble", ["none"]))
        check("the guest came to its end", "yes", results.get("finished", []))
    print(f"{passed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
