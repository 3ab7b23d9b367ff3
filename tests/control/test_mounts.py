"""Snapshots that come and go while clients read."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import threading
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from tests.control.clients import Answer, Controlled, done, mount
from tests.peers import need, need_libnbd, run
from tests.waiting import until

HOLD = """
import nbd, sys
h = nbd.NBD()
h.connect_uri(sys.argv[1])
print(h.pread(4096, 0).hex(), flush=True)
sys.stdin.readline()
try:
    print(h.pread(4096, 4096).hex(), flush=True)
except nbd.Error as error:
    print(error.errno, flush=True)
"""


def get(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=30) as response:
        data: bytes = response.read()
        return data


def hold(url: str) -> subprocess.Popen[str]:
    """An NBD client that reads, waits for a line, and reads again."""
    client = subprocess.Popen(
        [need_libnbd(), "-c", HOLD, url], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    assert len(client.stdout.readline()) == 8193
    return client


def go_on(client: subprocess.Popen[str]) -> str:
    return client.communicate("\n", timeout=30)[0].strip()


def test_a_mount_is_published_everywhere_and_gone_after_umount(
    daemon: Controlled, images: list[tuple[Path, bytes]]
) -> None:
    path, content = images[1]
    done(mount(daemon.control, "/pool/one", path, prefetch_files=["/"]))
    assert get(f"{daemon.http}/snapshots/pool%2Fone/disk") == content
    assert get(f"{daemon.http}/pool%2Fone.hxz") == path.read_bytes()
    assert run(need("nbdinfo", "libnbd-bin"), "--size", f"{daemon.nbd}pool/one").stdout.strip() == str(len(content))
    done(daemon.ask("DELETE", "/api/v1/mount?mountpoint=/pool/one"))
    assert daemon.ask("GET", "/api/v1/metrics?id=/pool/one").status == 404
    assert run(need("nbdinfo", "libnbd-bin"), f"{daemon.nbd}pool/one", check=False).returncode
    try:
        get(f"{daemon.http}/snapshots/pool%2Fone/disk")
        raise AssertionError("still there")
    except urllib.error.HTTPError as error:
        assert error.code == 404


def test_the_root_is_the_default_snapshot(daemon: Controlled, images: list[tuple[Path, bytes]]) -> None:
    path, content = images[2]
    assert get(f"{daemon.http}/disk") != content
    done(mount(daemon.control, "/", path))
    assert get(f"{daemon.http}/disk") == content
    assert run(need("nbdinfo", "libnbd-bin"), "--size", daemon.nbd).stdout.strip() == str(len(content))
    assert set(daemon.ask("GET", "/api/v1/daemon").json["backend_collection"]) == {"/snap", "/"}
    again = mount(daemon.control, "/", images[0][0])
    assert again.status == 500 and "already exists" in again.message
    done(daemon.ask("DELETE", "/api/v1/mount?mountpoint=/"))
    assert get(f"{daemon.http}/disk") != content
    # A client that did not see the answer and asks again takes nothing else away.
    again = daemon.ask("DELETE", "/api/v1/mount?mountpoint=/")
    assert again.status == 500 and "doesn't exist" in again.message
    assert set(daemon.ask("GET", "/api/v1/daemon").json["backend_collection"]) == {"/snap"}


def test_a_swap_is_seen_at_once_and_old_clients_keep_what_they_have(
    daemon: Controlled, images: list[tuple[Path, bytes]]
) -> None:
    (first, old), (second, new) = images[0], images[1]
    done(mount(daemon.control, "/a", first))
    client = hold(f"{daemon.nbd}a")
    refused = mount(daemon.control, "/a", second, "PUT", config='{"hexz": {"strict": true}}')
    assert refused.status == 500 and "other sizes" in refused.message
    assert get(f"{daemon.http}/snapshots/a/disk") == old
    done(mount(daemon.control, "/a", second, "PUT"))
    assert get(f"{daemon.http}/snapshots/a/disk") == new
    assert bytes.fromhex(go_on(client)) == old[4096:8192]
    bad = mount(daemon.control, "/a", Path(__file__), "PUT")
    assert bad.status == 500
    assert get(f"{daemon.http}/snapshots/a/disk") == new


def test_umount_ends_nbd_clients_between_requests(daemon: Controlled, images: list[tuple[Path, bytes]]) -> None:
    done(mount(daemon.control, "/a", images[0][0]))
    client = hold(f"{daemon.nbd}a")
    done(daemon.ask("DELETE", "/api/v1/mount?mountpoint=/a"))
    assert not [fd for fd in os.listdir(f"/proc/{daemon.process.pid}/fd") if opens(daemon, fd, images[0][0])]
    assert go_on(client) in ("ESHUTDOWN", "ENOTCONN", "ECONNRESET")


def opens(daemon: Controlled, fd: str, path: Path) -> bool:
    try:
        return os.readlink(f"/proc/{daemon.process.pid}/fd/{fd}") == str(path)
    except FileNotFoundError:
        return False


def test_umount_ends_clients_of_what_the_name_meant_before_too(
    daemon: Controlled, images: list[tuple[Path, bytes]]
) -> None:
    first, second = images[0][0], images[1][0]
    done(mount(daemon.control, "/a", first))
    client = hold(f"{daemon.nbd}a")
    done(mount(daemon.control, "/a", second, "PUT"))
    done(daemon.ask("DELETE", "/api/v1/mount?mountpoint=/a"))
    for path in (first, second):
        assert not [fd for fd in os.listdir(f"/proc/{daemon.process.pid}/fd") if opens(daemon, fd, path)]
    assert go_on(client) in ("ESHUTDOWN", "ENOTCONN", "ECONNRESET")


def test_umount_says_when_somebody_goes_on_reading(daemon: Controlled, disk_image: Path) -> None:
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 << 10)  # so that the rest stays with the server
        slow.settimeout(60)
        slow.connect(("127.0.0.1", int(daemon.http.rpartition(":")[2])))
        slow.sendall(b"GET /disk HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        reply = slow.recv(1000)
        answer = daemon.ask("DELETE", "/api/v1/mount?mountpoint=/snap&drain_timeout=0.1")
        assert answer.status == 500 and "still read" in answer.message
        assert "/snap" not in daemon.ask("GET", "/api/v1/daemon").json["backend_collection"]
        while part := slow.recv(1 << 20):
            reply += part
    assert reply.partition(b"\r\n\r\n")[2] == disk_image.read_bytes()


def test_mounts_are_kept_to_the_roots_and_survive_a_reload(
    tmp_path: Path, snapshot_file: Path, images: list[tuple[Path, bytes]]
) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    shutil.copy(images[0][0], allowed / "in.hxz")
    (allowed / "link.hxz").symlink_to(images[1][0])
    with Controlled(tmp_path / "api.sock", "--control-root", allowed, "--http-port", 0, snapshot_file) as daemon:
        for outside in (images[1][0], allowed / "link.hxz", allowed / ".." / "other.hxz"):
            answer = mount(daemon.control, "/x", outside)
            assert answer.status == 500 and "--control-root" in answer.message
        done(mount(daemon.control, "/in", allowed / "in.hxz"))
        daemon.process.send_signal(signal.SIGHUP)
        until(lambda: "reloaded: 2 snapshots" in daemon.stderr())
        assert get(f"{daemon.http}/snapshots/in/disk") == images[0][1]


def test_blobs_are_kept_to_the_roots_and_tell_nothing_of_what_is_outside(
    tmp_path: Path, snapshot_file: Path, images: list[tuple[Path, bytes]]
) -> None:
    allowed = tmp_path / "allowed"
    allowed.mkdir()
    shutil.copy(images[0][0], allowed / "in.hxz")
    (allowed / "link.hxz").symlink_to(images[1][0])
    (tmp_path / "text").write_text("no snapshot")
    with Controlled(tmp_path / "api.sock", "--control-root", allowed, "--http-port", 0, snapshot_file) as daemon:

        def register(path: Path) -> Answer:
            config = {"metadata_path": str(path)}
            body = {"type": "bootstrap", "id": "blob", "domain_id": "d", "config": config}
            return daemon.ask("PUT", "/api/v2/blobs", body)

        told = set()
        for outside in (
            images[1][0], allowed / "link.hxz", allowed / ".." / "text", tmp_path / "missing", Path("/etc/shadow")
        ):  # fmt: skip
            answer = register(outside)
            assert answer.status == 500
            told.add(answer.message.replace(str(outside), "PATH"))
        assert len(told) == 1 and "not below a directory given with --control-root" in told.pop()
        assert daemon.ask("GET", "/api/v2/blobs?domain_id=d").json == []
        done(register(allowed / "in.hxz"))


def test_300_mounts_and_umounts_under_load_leave_nothing_behind(
    daemon: Controlled, images: list[tuple[Path, bytes]]
) -> None:
    contents = {content for _, content in images}
    over = threading.Event()
    wrong: list[object] = []
    reads = [0]

    def read_all_the_time() -> None:
        while not over.is_set():
            try:
                data = get(f"{daemon.http}/snapshots/changing/disk")
                reads[0] += 1
                if data not in contents:
                    wrong.append("other bytes")
            except urllib.error.HTTPError as error:
                if error.code != 404:
                    wrong.append(error.code)
            except OSError as error:
                wrong.append(error)

    def figures() -> tuple[int, int, int]:
        pid = daemon.process.pid
        info = daemon.ask("GET", "/api/v1/daemon").json
        return (
            len(os.listdir(f"/proc/{pid}/fd")),
            len(info["backend_collection"]),
            len(os.listdir(f"/proc/{pid}/task")),
        )

    for path, _ in images:  # so that everything that is made once is there
        done(mount(daemon.control, "/changing", path))
        assert get(f"{daemon.http}/snapshots/changing/disk") in contents
        done(daemon.ask("DELETE", "/api/v1/mount?mountpoint=/changing"))
    before, resident = figures(), resident_kib(daemon)
    readers = [threading.Thread(target=read_all_the_time) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for number in range(300):
            done(mount(daemon.control, "/changing", images[number % 4][0]))
            if number % 3 == 0:
                done(mount(daemon.control, "/changing", images[(number + 1) % 4][0], "PUT"))
            done(daemon.ask("DELETE", "/api/v1/mount?mountpoint=/changing"))
    finally:
        over.set()
        for reader in readers:
            reader.join()
    assert not wrong
    assert reads[0] > 10
    until(lambda: figures() <= before)
    assert resident_kib(daemon) < resident + (64 << 10)
    assert set(daemon.ask("GET", "/api/v1/daemon").json["backend_collection"]) == {"/snap"}


def resident_kib(daemon: Controlled) -> int:
    for line in Path(f"/proc/{daemon.process.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1])
    raise AssertionError("no VmRSS")


def test_a_file_that_hangs_holds_up_nobody_but_its_own_mount(
    daemon: Controlled, tmp_path: Path, images: list[tuple[Path, bytes]]
) -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("needs /dev/fuse")
    need("nbdkit", "nbdkit")
    stuck, pid_file = tmp_path / "stuck.hxz", tmp_path / "pid"
    stuck.touch()
    served = ("nbdkit", "-s", "--exit-with-parent", "-P", pid_file, "file", images[0][0])
    fuse = subprocess.Popen([need("nbdfuse", "libnbd-bin"), "-r", stuck, "--command", *served])
    answers: list[Answer] = []
    try:
        until(lambda: stuck.stat().st_size == images[0][0].stat().st_size and pid_file.exists())
        os.kill(int(pid_file.read_text()), signal.SIGSTOP)
        hanging = threading.Thread(target=lambda: answers.append(mount(daemon.control, "/stuck", stuck)))
        hanging.start()
        until(lambda: opens_any(daemon, stuck))
        second = mount(daemon.control, "/stuck", images[1][0])
        assert second.status == 500 and "already exists" in second.message
        for _ in range(50):
            assert set(daemon.ask("GET", "/api/v1/daemon").json["backend_collection"]) == {"/snap"}
        done(mount(daemon.control, "/other", images[1][0]))
        assert get(f"{daemon.http}/snapshots/other/disk") == images[1][1]
        assert not answers
        os.kill(int(pid_file.read_text()), signal.SIGCONT)
        hanging.join(60)
        done(answers[0])
        assert get(f"{daemon.http}/snapshots/stuck/disk") == images[0][1]
        done(daemon.ask("DELETE", "/api/v1/mount?mountpoint=/stuck"))
    finally:
        run("umount", stuck, check=False)
        fuse.kill()
        fuse.wait()


def opens_any(daemon: Controlled, path: Path) -> bool:
    return any(opens(daemon, fd, path) for fd in os.listdir(f"/proc/{daemon.process.pid}/fd"))


def test_a_failed_change_says_its_cause_first_and_in_the_log_too(
    daemon: Controlled, tmp_path: Path, other: Path
) -> None:
    (tmp_path / "text").write_text("no snapshot")
    table = [
        (tmp_path / "none.hxz", "no such file", "BAD_SOURCE"),
        (tmp_path / "text", "not a hexz snapshot (no HEXZ magic)", "BAD_SOURCE"),
    ]
    for source, cause, code in table:
        answer = mount(daemon.control, "/x", source)
        assert (answer.status, answer.json["code"]) == (500, code)
        assert answer.message == f"{source}: {cause} (Mount(MountFilesystem))"
        until(
            lambda cause=cause, source=source: (
                f"POST /api/v1/mount?mountpoint=%2Fx: 500: {source}: {cause}" in daemon.stderr()
            )
        )
    # What clients of the Nydus daemon look for stays as that one says it.
    done(mount(daemon.control, "/x", other))
    again = mount(daemon.control, "/x", other)
    assert again.message == 'Mount(MountFilesystem(Other("object or filesystem already exists")))'
    # A line is written when its request has ended; that of the next request may come before it.
    until(lambda: len(logged(daemon)) == 4)
    assert sorted(" WARNING " in line for line in logged(daemon)) == [False, True, True, True]
    assert [" INFO " in line for line in logged(daemon) if line.endswith(": 204")] == [True]


def logged(daemon: Controlled) -> list[str]:
    return [line for line in daemon.stderr().splitlines() if "/api/v1/mount" in line]
