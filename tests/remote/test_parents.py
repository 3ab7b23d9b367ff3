"""Parents of snapshots on servers: from below the child's own folder or an address that was given, not elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from hexz.errors import CorruptSnapshot, ParentMissing, ParentRefused, SnapshotError, SnapshotUnreadable
from hexz.snapshot import new_context, open_snapshot
from hexz.storage.remote import RemoteSettings, StoreNames
from tests.crafted import Craft, child_of
from tests.peers import write_secret
from tests.remote.proxy import Proxy
from tests.remote.reading import Recorder
from tests.remote.stores import nginx
from tests.snapshot.test_parents_allowed import PASSWORD, PLAIN, child, encrypted_base

BASE = b"p" * 100
QUICK = RemoteSettings(deadline_s=5)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """What is served; the snapshots that children are tried as lie in ``a``."""
    (tmp_path / "root" / "a" / "b").mkdir(parents=True)
    child_of(tmp_path / "root", "outside.hxz")
    child_of(tmp_path, "local.hxz")
    return tmp_path / "root"


@pytest.fixture
def proxy(root: Path) -> Iterator[Proxy]:
    with nginx(root) as store, Proxy(store.base) as made:
        yield made


def first(address: str, settings: RemoteSettings = QUICK, *dirs: Path, password: bytes | None = None) -> bytes:
    """The first bytes of its disk."""
    context = new_context(1 << 20, password, tuple(map(str, dirs)), workers=0, remote=settings)
    try:
        with open_snapshot(address, context) as snapshot:
            return b"".join(snapshot.streams["disk"].read(0, min(4096, snapshot.streams["disk"].size)))
    finally:
        context.remote.close()


@pytest.mark.parametrize("stored", ["base.hxz", "/home/me/base.hxz", "../x/base.hxz", "{a}base.hxz", "b c%20?#é.hxz"])
def test_a_parent_beside_its_child(stored: str, root: Path, proxy: Proxy) -> None:
    child_of(root / "a", "b c%20?#é.hxz" if stored.startswith("b ") else "base.hxz")
    child_of(root / "a", "child.hxz", stored.replace("{a}", proxy.url("a/")))
    assert first(proxy.url("a/child.hxz")) == BASE


def test_a_chain_and_a_circle(root: Path, proxy: Proxy) -> None:
    child_of(root / "a", "base.hxz")
    child_of(root / "a", "b/middle.hxz", "../base.hxz", "base.hxz")
    child_of(root / "a", "child.hxz", "b/middle.hxz")
    # The middle's own folder is b.
    with pytest.raises(ParentMissing, match=r"middle\.hxz"):
        first(proxy.url("a/child.hxz"))
    child_of(root / "a" / "b", "base.hxz")
    assert first(proxy.url("a/child.hxz")) == BASE
    child_of(root / "a", "x.hxz", "y.hxz")
    child_of(root / "a", "y.hxz", "x.hxz")
    with pytest.raises(CorruptSnapshot, match="circle"):
        first(proxy.url("a/x.hxz"))


TRICKS = [
    "../outside.hxz",
    "%2e%2e/outside.hxz",
    "..%2foutside.hxz",
    "b/../../outside.hxz",
    "..\\outside.hxz",
    "{a}../outside.hxz",
    "{a}%2e%2e/outside.hxz",
    "{a}%252e%252e/outside.hxz",
    "{a}..;/outside.hxz",
    "{a}..%2foutside.hxz",
    "{a}base.hxz?x=y",
    "{a}base.hxz#y",
    "{root}outside.hxz",
    "{recorder}/a/base.hxz",
    "http://169.254.169.254/latest/meta-data/",
    "http://localhost/a/base.hxz",
    "https://127.0.0.1/a/base.hxz",
    "http://user@{authority}/a/base.hxz",
    "http://{authority}@{recorder_authority}/a/base.hxz",
    "s3://bucket/base.hxz",
    "file:///etc/passwd",
    "//{recorder_authority}/a/base.hxz",
    "{local}",
    "x" * 300,
    "http://{authority}/a/" + "x" * 500,
    "",
    ".",
    "/",
    "\0",
    "a\r\nX: y",
]


def test_nothing_else_is_asked_for(root: Path, proxy: Proxy) -> None:
    """Whatever a child calls its parent: no other server is asked, nothing above its folder, and no file here."""
    with Recorder("127.0.0.1") as recorder:
        names = {"a": proxy.url("a/"), "root": proxy.url(""), "authority": f"127.0.0.1:{proxy.port}",
                 "recorder": recorder.url, "recorder_authority": recorder.url[7:],
                 "local": str(root.parent / "local.hxz")}  # fmt: skip
        for number, trick in enumerate(TRICKS):
            child_of(root / "a", f"{number}.hxz", trick.format(**names) if "{" in trick else trick)
            proxy.forget()
            with pytest.raises((ParentMissing, ParentRefused, SnapshotError)) as told:
                first(proxy.url(f"a/{number}.hxz"))
            assert isinstance(told.value, (ParentMissing, ParentRefused)), (trick, told.value)
            assert "\n" not in str(told.value) and proxy.url(f"a/{number}.hxz") in str(told.value)
            for asked in proxy.counts.asked:
                assert (
                    asked.path.startswith("/a/") and "outside" not in asked.path.replace("%5C", "/").split("/")[2:3]
                ), trick
                assert ".." not in asked.path.replace("..%", "").replace("..;", "")
        assert not recorder.heads


def test_a_folder_at_the_root_of_a_server_is_that_server(root: Path, proxy: Proxy) -> None:
    """Without a slash behind it, too."""
    (root / "index.html").write_bytes(child_of(root, "c.hxz", "127.0.0.2/base.hxz").read_bytes())
    with pytest.raises(ParentMissing, match=f"{proxy.root}/,"):
        first(proxy.root)
    assert all(asked.path in ("/", "/127.0.0.2/base.hxz", "/base.hxz") for asked in proxy.counts.asked)


def test_a_parent_elsewhere_that_was_allowed(root: Path, proxy: Proxy, tmp_path: Path) -> None:
    with nginx(tmp_path / "root") as other:
        child_of(root / "a", "child.hxz", other.url("outside.hxz"))
        child_of(root / "a", "short.hxz", "outside.hxz")
        local = child_of(tmp_path, "here.hxz", other.url("outside.hxz"))
        for address in (proxy.url("a/child.hxz"), str(local)):
            with pytest.raises(ParentMissing, match="--parent-url"):
                first(address)
            with pytest.raises(ParentMissing, match="--parent-url"):
                first(address, QUICK._replace(parent_urls=(other.url("a/"),)))
        allowed = QUICK._replace(parent_urls=(other.base,))
        for address in (proxy.url("a/child.hxz"), proxy.url("a/short.hxz"), str(local)):
            assert first(address, allowed) == BASE
        # A folder here was given for this.
        child_of(root / "a", "near.hxz", "local.hxz")
        assert first(proxy.url("a/near.hxz"), QUICK, tmp_path) == BASE


def test_a_presigned_child_shows_its_parent_no_signature(root: Path, proxy: Proxy) -> None:
    child_of(root / "a", "base.hxz")
    child_of(root / "a", "child.hxz", "base.hxz")
    assert first(f"{proxy.url('a/child.hxz')}?X-Amz-Signature=secret") == BASE
    assert {asked.target.partition("?")[2] for asked in proxy.counts.asked if "base" in asked.path} == {""}
    # Where its own folder refuses that, the parent may be where it was said to be.
    proxy.use("403", when=lambda asked: asked.path == "/a/base.hxz")
    with pytest.raises(SnapshotUnreadable, match=r"a/base\.hxz: its server does not give it"):
        first(proxy.url("a/child.hxz"))
    child_of(root / "a" / "b", "base.hxz")
    assert first(proxy.url("a/child.hxz"), QUICK._replace(parent_urls=(proxy.url("a/b/"),))) == BASE


def test_a_parent_in_a_bucket(root: Path, proxy: Proxy) -> None:
    keys = write_secret(root.parent / "keys", "[default]\naws_access_key_id = A\naws_secret_access_key = B\n")
    settings = QUICK._replace(stores=StoreNames(proxy.root), credentials_file=str(keys))
    child_of(root / "a", "the base.hxz")
    child_of(root / "a", "child.hxz", "the base.hxz")
    child_of(root / "a", "other.hxz", "s3://another/x.hxz")
    (root / "a-bucket").symlink_to(root / "a")
    assert first("s3://a-bucket/child.hxz", settings) == BASE
    with pytest.raises(ParentMissing):
        first("s3://a-bucket/other.hxz", settings)


@pytest.mark.parametrize(
    ("encrypt", "own", "allowed"), [(False, True, False), (True, False, False), (True, True, True)]
)
def test_an_encrypted_parent_is_read_for_who_knows_the_password(
    encrypt: bool, own: bool, allowed: bool, root: Path, proxy: Proxy
) -> None:
    encrypted_base(root / "a")
    child(root / "a" / "child.hxz", encrypt, own)
    url = proxy.url("a/child.hxz")
    if allowed:
        assert first(url, password=PASSWORD) == PLAIN
        return
    with pytest.raises(ParentRefused, match=f"is encrypted, and .*give --parent-url {proxy.url('a/')}"):
        first(url, password=PASSWORD)
    assert first(url, QUICK._replace(parent_urls=(proxy.url("a"),)), password=PASSWORD) == PLAIN


def test_a_parent_that_changes_makes_its_child_change(root: Path, proxy: Proxy) -> None:
    craft = Craft()
    for _ in range(300):
        craft.data(bytes(range(256)) * 16)
    craft.page()
    craft.write(root / "a" / "base.hxz")
    thin = Craft()
    thin.parents = ["base.hxz"]
    for _ in range(300):
        thin.parent(4096)
    thin.page()
    thin.write(root / "a" / "child.hxz")
    context = new_context(1 << 20, workers=0, remote=QUICK)
    with open_snapshot(proxy.url("a/child.hxz"), context) as snapshot:
        assert not snapshot.changed and snapshot.look()
        proxy.use("another etag", when=lambda asked: asked.path.endswith("base.hxz"))
        assert not snapshot.look() and snapshot.changed
    context.remote.close()


def test_names_are_quoted(root: Path, proxy: Proxy) -> None:
    child_of(root / "a", "child.hxz", "b c%.hxz")
    child_of(root / "a", "b c%.hxz")
    assert first(proxy.url("a/child.hxz")) == BASE
    assert f"/a/{quote('b c%.hxz')}" in {asked.target for asked in proxy.counts.asked}
