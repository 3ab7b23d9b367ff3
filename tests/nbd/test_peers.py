"""The programs that people have: libnbd's tools, QEMU's, fio and nbd-client, against one daemon."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.nbd.conftest import BLOCK, Exports
from tests.peers import Server, need, need_libnbd, run

TRANSPORTS = ("tcp", "unix")


def uri(server: Server, transport: str, export: str = "") -> str:
    """The URI of an export over TCP or the unix socket."""
    if transport == "tcp":
        return server.nbd + export
    return server.urls["nbd+unix"].replace("///", f"///{export}")


@pytest.fixture
def nbdinfo() -> str:
    return need("nbdinfo", "libnbd-bin")


@pytest.fixture
def qemu_img() -> str:
    need("qemu-nbd", "qemu-utils")
    return need("qemu-img", "qemu-utils")


def test_nbdinfo_lists_and_describes(nbdinfo: str, server: Server, exports: Exports) -> None:
    described = json.loads(run(nbdinfo, "--list", "--json", server.nbd).stdout)
    assert described["protocol"] == "newstyle-fixed"
    by_name = {export["export-name"]: export for export in described["exports"]}
    assert set(by_name) == {"snap", "snap/memory", "thin", "damaged"}
    assert by_name["snap"]["export-size"] == len(exports.disk)
    assert by_name["snap/memory"]["export-size"] == len(exports.memory)
    assert by_name["snap"]["block_size_preferred"] == BLOCK
    assert by_name["thin"]["contexts"] == ["base:allocation", "hexz:parent"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_nbdinfo_knows_what_can_be_done(nbdinfo: str, server: Server, exports: Exports, transport: str) -> None:
    where = uri(server, transport)
    assert int(run(nbdinfo, "--size", where).stdout) == len(exports.disk)
    yes = ["connect", "read", "multi-conn", "cache", "df"]
    no = ["write", "flush", "fua", "trim", "zero", "fast-zero"]
    found = {word: run(nbdinfo, "--can", word, where, check=False).returncode for word in yes + no}
    assert found == {**dict.fromkeys(yes, 0), **dict.fromkeys(no, 2)}
    found = {word: run(nbdinfo, "--is", word, where, check=False).returncode for word in ("read-only", "rotational")}
    assert found == {"read-only": 0, "rotational": 2}


def test_nbdinfo_map_tells_holes_from_data(nbdinfo: str, server: Server, exports: Exports) -> None:
    extents = json.loads(run(nbdinfo, "--map", "--json", server.nbd).stdout)
    at = 0
    for extent in extents:
        assert extent["offset"] == at
        at += extent["length"]
        if extent["type"] == 3:
            assert not any(exports.disk[extent["offset"] : at])
    assert at == len(exports.disk)
    assert {extent["type"] for extent in extents} == {0, 3}
    totals = json.loads(run(nbdinfo, "--map", "--totals", "--json", server.nbd).stdout)
    zeros = sum(extent["length"] for extent in extents if extent["type"] == 3)
    assert {total["type"]: total["size"] for total in totals} == {0: at - zeros, 3: zeros}
    parents = json.loads(run(nbdinfo, "--map=hexz:parent", "--json", f"{server.nbd}thin").stdout)
    assert {extent["type"] for extent in parents} == {0, 1}


@pytest.mark.parametrize(
    ("transport", "options"),
    [
        ("tcp", ["--connections=1"]),
        ("tcp", ["--connections=1", "--no-extents"]),
        ("tcp", ["--connections=4", "--no-extents"]),
        ("tcp", ["--connections=4", "--requests=64"]),
        ("unix", ["--connections=4", "--no-extents", "--request-size=2097152"]),
        ("unix", ["--synchronous"]),
    ],
)
@pytest.mark.parametrize("export", ["", "thin", "snap/memory"])
def test_nbdcopy_gives_the_same_bytes(
    server: Server, exports: Exports, tmp_path: Path, transport: str, options: list[str], export: str
) -> None:
    out = tmp_path / "out.raw"
    run(need("nbdcopy", "libnbd-bin"), *options, uri(server, transport, export), out)
    assert out.read_bytes() == {"": exports.disk, "thin": exports.child, "snap/memory": exports.memory}[export]


LIBNBD = """
import errno, nbd, sys
uri, raw = sys.argv[1], open(sys.argv[2], "rb").read()
h = nbd.NBD()
h.add_meta_context("base:allocation")
h.set_export_name("")
h.connect_uri(uri)
assert h.get_structured_replies_negotiated()
assert h.can_meta_context("base:allocation") and h.can_df() and h.can_multi_conn() and h.is_read_only()
assert h.get_block_size(nbd.SIZE_MINIMUM) == 1 and h.get_block_size(nbd.SIZE_MAXIMUM) == 32 << 20
pieces = {}
def chunk(data, offset, status, error):
    assert status in (nbd.READ_DATA, nbd.READ_HOLE), status
    pieces[offset] = bytes(data) if status == nbd.READ_DATA else None
    return 0
whole = h.pread_structured(len(raw), 0, chunk)
assert whole == raw and None in pieces.values() and len(pieces) > 2
pieces.clear()
assert h.pread_structured(300000, 1000, chunk, nbd.CMD_FLAG_DF) == raw[1000:301000] and list(pieces) == [1000]
found = []
def extent(name, offset, entries, error):
    assert name == "base:allocation" and offset == 0
    found.extend(zip(entries[::2], entries[1::2]))
h.block_status(len(raw), 0, extent)
at = 0
for length, flags in found:
    assert flags == 0 or not any(raw[at:at + length])
    at += length
assert at == len(raw)
found.clear()
h.block_status(len(raw), 0, extent, nbd.CMD_FLAG_REQ_ONE)
assert len(found) == 1
h.cache(len(raw), 0)
def fails(number, call):
    try:
        call()
    except nbd.Error as error:
        assert error.errnum == number, error
    else:
        raise AssertionError("no error")
h.set_strict_mode(0)
fails(errno.EINVAL, lambda: h.pread(512, len(raw)))
fails(errno.EPERM, lambda: h.pwrite(bytes(4096), 0))
fails(errno.EPERM, lambda: h.trim(512, 0))
fails(errno.EPERM, lambda: h.zero(512, 0))
fails(errno.EINVAL, lambda: h.flush())
fails(errno.EINVAL, lambda: h.pread(512, 0, nbd.CMD_FLAG_FUA))
fails(errno.EOVERFLOW, lambda: h.pread(2 << 20, 0, nbd.CMD_FLAG_DF))
flying = []
for number in range(600):
    buffer = nbd.Buffer(5000)
    flying.append((h.aio_pread(buffer, number * 7919), buffer, number * 7919))
while h.aio_in_flight():
    h.poll(-1)
for cookie, buffer, offset in flying:
    assert h.aio_command_completed(cookie)
    assert buffer.to_bytearray() == raw[offset:offset + 5000]
h.shutdown()
"""


def test_libnbd_reads_structured_and_pipelined(server: Server, exports: Exports, disk_image: Path) -> None:
    run(need_libnbd(), "-c", LIBNBD, server.nbd, disk_image)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_qemu_img_reads_compares_converts_and_maps(
    qemu_img: str, server: Server, exports: Exports, disk_image: Path, tmp_path: Path, transport: str
) -> None:
    where = uri(server, transport)
    shown = json.loads(run(qemu_img, "info", "--output=json", "-f", "raw", where).stdout)
    assert shown["virtual-size"] >= len(exports.disk)
    run(qemu_img, "compare", "-f", "raw", "-F", "raw", disk_image, where)
    copy = tmp_path / "copy.qcow2"
    run(qemu_img, "convert", "-f", "raw", "-O", "qcow2", "-m", "16", "-W", where, copy)
    run(qemu_img, "compare", "-f", "qcow2", "-F", "raw", copy, disk_image)
    extents = json.loads(run(qemu_img, "map", "--output=json", "-f", "raw", where).stdout)
    assert any(extent["zero"] for extent in extents)
    assert any(extent["data"] for extent in extents)


def test_qemu_io_finds_the_patterns(server: Server, exports: Exports) -> None:
    zeros = exports.disk.index(bytes(BLOCK))
    commands = [f"read -P 0 {zeros} {BLOCK}", "aio_read 0 1M", "aio_read 1M 1M", "aio_flush", "read 511 3"]
    options = [part for command in commands for part in ("-c", command)]
    out = run(need("qemu-io", "qemu-utils"), "-r", "-f", "raw", *options, server.nbd).stdout
    assert "Pattern verification failed" not in out
    failed = run("qemu-io", "-r", "-f", "raw", "-c", f"read -P 1 {zeros} 512", server.nbd, check=False)
    assert "Pattern verification failed" in failed.stdout + failed.stderr


def test_nbd_client_lists_the_exports(server: Server) -> None:
    done = run(need("nbd-client", "nbd-client"), "-l", "127.0.0.1", server.nbd_port)
    assert [line.strip() for line in done.stdout.splitlines()][-4:] == ["snap", "snap/memory", "thin", "damaged"]


def test_fio_verifies_what_it_reads(server: Server, exports: Exports, tmp_path: Path) -> None:
    """fio can only verify what it has written: it writes an image, the daemon serves it, and fio reads that."""
    from hexz.tools.pack import pack

    fio = need("fio", "fio")
    raw = tmp_path / "verify.raw"
    job = [fio, "--name=job", "--size=4M", "--bs=4k", "--randseed=7"]
    run(*job, "--rw=write", "--verify=crc32c", "--ioengine=psync", f"--filename={raw}", "--do_verify=0", cwd=tmp_path)
    pack(str(raw), str(tmp_path / "verify.hxz"))
    with Server(tmp_path / "verify.hxz", "--nbd-port", 0) as running:
        reading = [*job, "--rw=read", "--ioengine=nbd", f"--uri={running.nbd}", "--iodepth=16", "--readonly"]
        run(*reading, "--verify=crc32c", "--verify_fatal=1", cwd=tmp_path)
        # Checked against another sum it must fail, or nothing was verified.
        assert run(*reading, "--verify=md5", "--verify_fatal=1", check=False, cwd=tmp_path).returncode != 0


def test_nbdkit_and_qemu_stand_between(server: Server, disk_image: Path) -> None:
    """nbdkit as a client of ours and a server for QEMU: what it takes from us must be what it can give on."""
    nbdkit = need("nbdkit", "nbdkit")
    compare = f"qemu-img compare -f raw -F raw {disk_image} $uri"
    subprocess.run([nbdkit, "-r", "-U", "-", "nbd", f"uri={server.nbd}", "shared=1", "--run", compare], check=True)
