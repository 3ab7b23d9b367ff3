"""Keys, rights and presigned URLs against the daemon, with clients that sign for themselves."""

from __future__ import annotations

import datetime
import json
import signal
import ssl
import sys
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest

from hexz.errors import ConfigError
from hexz.servers.s3.access import KeyFile
from tests.conftest import CORPUS
from tests.crafted import Craft
from tests.peers import ROOT, Server, fetch, need, need_module, run, write_secret
from tests.s3.serving import (
    ACCESS_KEY,
    LIMITED_KEY,
    LIMITED_SECRET,
    REGION,
    SECRET,
    Endpoint,
    serving_s3,
    write_keys,
)
from tests.waiting import until

boto3 = need_module("boto3")
UNSIGNED = need_module("botocore").UNSIGNED
signing = need_module("botocore.auth")
Config = need_module("botocore.config").Config
ClientError = need_module("botocore.exceptions").ClientError


def client_for(url: str, access_key: str = ACCESS_KEY, secret: str = SECRET, **options: Any) -> Any:
    config = Config(retries={"total_max_attempts": 1}, **options.pop("config", {}))
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret,
        region_name=options.pop("region", REGION),
        config=config,
        **options,
    )


def refusal(call: Callable[[], Any]) -> tuple[int, str]:
    with pytest.raises(ClientError) as caught:
        call()
    answer = caught.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"]


def test_keys_and_their_rights(endpoint: Endpoint) -> None:
    limited = client_for(endpoint.url, LIMITED_KEY, LIMITED_SECRET)
    assert [bucket["Name"] for bucket in limited.list_buckets()["Buckets"]] == ["dir"]
    assert limited.list_objects_v2(Bucket="dir")["KeyCount"] > 3
    for bucket in ("snap", "nothing"):  # it does not learn what there is
        assert refusal(lambda bucket=bucket: limited.get_object(Bucket=bucket, Key="disk")) == (403, "AccessDenied")
    stranger = client_for(endpoint.url, "STRANGER", SECRET)
    assert refusal(lambda: stranger.list_buckets()) == (403, "InvalidAccessKeyId")
    wrong = client_for(endpoint.url, ACCESS_KEY, SECRET[::-1])
    assert refusal(lambda: wrong.list_buckets()) == (403, "SignatureDoesNotMatch")
    assert refusal(lambda: wrong.head_bucket(Bucket="snap")) == (403, "403")
    unsigned = boto3.client(
        "s3", endpoint_url=endpoint.url, region_name=REGION, config=Config(signature_version=UNSIGNED)
    )
    assert refusal(lambda: unsigned.list_objects_v2(Bucket="snap")) == (403, "AccessDenied")
    elsewhere = client_for(endpoint.url, region="eu-central-1")
    assert elsewhere.head_object(Bucket="snap", Key="disk")["ResponseMetadata"]["HTTPStatusCode"] == 200


def test_a_key_for_some_buckets_reads_no_others_through_thin_snapshots(tmp_path: Path) -> None:
    """A thin snapshot names any file beside it as its parent; what may be read is decided for that one's bucket."""
    base = Craft()
    base.data(b"b" * 4096)
    base.page()
    base_path = base.write(tmp_path / "base.hxz")
    thin = Craft()
    thin.parents = ["base.hxz"]
    thin.parent(4096)
    thin.page()
    thin.metadata = json.dumps({"files": [{"path": "f", "offset": 0, "size": 4096}]}).encode()
    thin_path = thin.write(tmp_path / "thin.hxz")
    keys = tmp_path / "keys"
    write_secret(keys, f"{ACCESS_KEY} {SECRET}\nCHILD {SECRET} thin\nBOTH {SECRET} thin base\n")
    options = ["--s3-port", 0, "--s3-keys-file", keys]

    def answers(url: str, access_key: str) -> list[int]:
        client = client_for(url, access_key)
        found = []
        for call in (client.head_object, client.get_object):
            for key in ("disk", "files/f", "thin.hxz", "info.json"):
                try:
                    found.append(call(Bucket="thin", Key=key)["ResponseMetadata"]["HTTPStatusCode"])
                except ClientError as error:
                    found.append(error.response["ResponseMetadata"]["HTTPStatusCode"])
        return found

    own_alone = [403, 403, 200, 200] * 2
    with Server(*options, base_path, thin_path) as server:
        url = server.urls["s3"].replace("s3:", "http:").rstrip("/")
        assert answers(url, "CHILD") == own_alone
        assert answers(url, "BOTH") == answers(url, ACCESS_KEY) == [200] * 8
        assert refusal(lambda: client_for(url, "CHILD").get_object(Bucket="thin", Key="disk")) == (403, "AccessDenied")
    with Server(*options, thin_path) as server:  # the base has no bucket here, so nobody may read it
        url = server.urls["s3"].replace("s3:", "http:").rstrip("/")
        assert answers(url, "BOTH") == own_alone
        assert answers(url, ACCESS_KEY) == [200] * 8
    with Server(*options, "--parent-dir", tmp_path, thin_path) as server:
        url = server.urls["s3"].replace("s3:", "http:").rstrip("/")
        assert answers(url, "CHILD") == [200] * 8


def test_the_rights_on_parents_are_looked_up_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many snapshots are served, a request for a thin one goes through the names of its parents alone."""
    base, thin = Craft(), Craft()
    base.data(b"b" * 4096)
    base.page()
    base.write(tmp_path / "base.hxz")
    thin.parents = ["base.hxz"]
    thin.parent(4096)
    thin.page()
    served = {"thin": thin.write(tmp_path / "thin.hxz"), "base": tmp_path / "base.hxz"}
    write_secret(tmp_path / "keys", f"CHILD {SECRET} thin\nBOTH {SECRET} thin base\n")
    with serving_s3(served, KeyFile(str(tmp_path / "keys")), anonymous=False) as server:
        url = f"http://127.0.0.1:{server.address[1]}"

        def listed() -> NoReturn:
            raise AssertionError("everything that is served was gone through")

        monkeypatch.setattr(server.catalog, "served", listed)
        monkeypatch.setattr(server.catalog, "names", listed)
        assert client_for(url, "BOTH").get_object(Bucket="thin", Key="disk")["Body"].read() == b"b" * 4096
        assert refusal(lambda: client_for(url, "CHILD").get_object(Bucket="thin", Key="disk")) == (403, "AccessDenied")
        monkeypatch.undo()


@pytest.mark.parametrize(
    ("minutes", "answer"), [(-16, "RequestTimeTooSkewed"), (16, "RequestTimeTooSkewed"), (-14, "")]
)
def test_clocks(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch, minutes: int, answer: str) -> None:
    def shifted(remove_tzinfo: bool = True) -> datetime.datetime:
        now = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(minutes=minutes)
        return now.replace(tzinfo=None) if remove_tzinfo else now

    monkeypatch.setattr(signing, "get_current_datetime", shifted)
    client = client_for(endpoint.url)
    if answer:
        assert refusal(lambda: client.list_buckets()) == (403, answer)
    else:
        client.list_buckets()


def test_presigned_urls(endpoint: Endpoint, disk: bytes) -> None:
    client = client_for(endpoint.url, config={"signature_version": "s3v4"})
    wanted = {"Bucket": "snap", "Key": "disk", "ResponseContentDisposition": 'attachment; filename="a b+c"'}
    url = client.generate_presigned_url("get_object", wanted, ExpiresIn=100)
    assert fetch(url) == (200, disk)
    assert fetch(url, headers={"Range": "bytes=5-9"}) == (206, disk[5:10])
    for other in (url.replace("/disk", "/memory"), url.replace("Expires=100", "Expires=1000"), f"{url}&x=1"):
        status, body = fetch(other)
        assert (status, b"<Code>SignatureDoesNotMatch</Code>" in body) == (403, True)
    assert fetch(url, "HEAD") == (403, b"")
    assert fetch(client.generate_presigned_url("head_object", {"Bucket": "snap", "Key": "disk"}), "HEAD") == (200, b"")
    old = client_for(endpoint.url, config={"signature_version": "s3"})
    status, body = fetch(old.generate_presigned_url("get_object", {"Bucket": "snap", "Key": "disk"}))
    assert (status, b"AWS4-HMAC-SHA256" in body) == (400, True)


def test_a_presigned_url_ends(snapshot_file: Path, tmp_path: Path) -> None:
    keys = KeyFile(str(write_keys(tmp_path)))
    with serving_s3({"snap": snapshot_file}, keys, anonymous=False) as server:
        client = client_for(server.url, config={"signature_version": "s3v4"})
        url = client.generate_presigned_url("get_object", {"Bucket": "snap", "Key": "info.json"}, ExpiresIn=60)
        policy = server.policy
        now = policy._clock()
        for later, status in ((0, 200), (55, 200), (62, 403), (100_000, 403)):
            policy._clock = lambda later=later: now + later
            found, body = fetch(url)
            assert (found, b"Request has expired" in body) == (status, status == 403)


def test_writes_are_refused(endpoint: Endpoint) -> None:
    client = client_for(endpoint.url)
    refused = (405, "MethodNotAllowed")
    assert refusal(lambda: client.put_object(Bucket="snap", Key="disk", Body=b"x" * 3_000_000)) == refused
    assert refusal(lambda: client.delete_object(Bucket="snap", Key="disk")) == refused
    assert refusal(lambda: client.create_bucket(Bucket="another")) == refused
    assert refusal(lambda: client.create_multipart_upload(Bucket="snap", Key="x")) == refused
    copied = {"Bucket": "snap", "Key": "x", "CopySource": "snap/disk"}
    assert refusal(lambda: client.copy_object(**copied)) == refused
    limited = client_for(endpoint.url, LIMITED_KEY, LIMITED_SECRET)
    assert refusal(lambda: limited.put_object(Bucket="snap", Key="disk", Body=b"x")) == (403, "AccessDenied")
    assert client.head_object(Bucket="snap", Key="disk")["ContentLength"] > 0


def test_what_boto3_can_ask(endpoint: Endpoint, disk: bytes) -> None:
    client = client_for(endpoint.url)
    part = client.get_object(Bucket="snap", Key="disk", PartNumber=1)
    assert (part["PartsCount"], part["Body"].read() == disk) == (1, True)
    found = client.get_object_attributes(Bucket="snap", Key="disk", ObjectAttributes=["ETag", "ObjectSize"])
    assert found["ObjectSize"] == len(disk)
    assert found["LastModified"] == client.head_object(Bucket="snap", Key="disk")["LastModified"]
    etag = client.head_object(Bucket="snap", Key="disk")["ETag"]
    assert refusal(lambda: client.get_object(Bucket="snap", Key="disk", IfMatch='"x"')) == (412, "PreconditionFailed")
    assert refusal(lambda: client.get_object(Bucket="snap", Key="disk", IfNoneMatch=etag)) == (304, "304")
    assert refusal(lambda: client.get_object(Bucket="snap", Key="no")) == (404, "NoSuchKey")
    assert refusal(lambda: client.head_object(Bucket="snap", Key="no")) == (404, "404")
    beyond = {"Bucket": "snap", "Key": "disk", "Range": "bytes=99999999-"}
    assert refusal(lambda: client.get_object(**beyond)) == (416, "InvalidRange")
    assert client.get_bucket_location(Bucket="snap")["LocationConstraint"] is None
    assert "Status" not in client.get_bucket_versioning(Bucket="snap")
    assert refusal(lambda: client.get_bucket_policy(Bucket="snap")) == (404, "NoSuchBucketPolicy")
    assert client.get_object_tagging(Bucket="snap", Key="disk")["TagSet"] == []
    text = client.get_object(Bucket="snap", Key="info.json", ResponseContentType="text/plain")
    assert text["ContentType"] == "text/plain"
    paginator = client.get_paginator("list_objects_v2")
    pages = list(paginator.paginate(Bucket="dir", Delimiter="/", PaginationConfig={"PageSize": 1}))
    listed = [item["Key"] for page in pages for item in page.get("Contents", ())]
    grouped = [item["Prefix"] for page in pages for item in page.get("CommonPrefixes", ())]
    assert (listed, grouped) == (["dir.hxz", "disk", "info.json", "memory"], ["files/"])
    resource = boto3.resource(
        "s3", endpoint_url=endpoint.url, aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET, region_name=REGION
    )
    assert [item.key for item in resource.Bucket("snap").objects.all()] == ["disk", "info.json", "memory", "snap.hxz"]
    assert resource.Object("snap", "disk").get(Range="bytes=7-9")["Body"].read() == disk[7:10]
    # Virtual-host style; the proxy setting saves the names from being looked up.
    virtual = client_for(
        f"http://localhost:{endpoint.port}",
        config={"s3": {"addressing_style": "virtual"}, "proxies": {"http": endpoint.url}},
    )
    assert virtual.get_object(Bucket="snap", Key="disk")["Body"].read() == disk
    assert virtual.list_objects_v2(Bucket="snap", Prefix="d")["KeyCount"] == 1


def test_tls_log_and_reload(snapshot_file: Path, tmp_path: Path) -> None:
    certificate, log, keys = tmp_path / "cert.pem", tmp_path / "log", write_keys(tmp_path)
    run(
        need("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1",
        "-keyout", tmp_path / "key.pem", "-out", certificate,
    )  # fmt: skip
    options = ["--s3-port", 0, "--s3-keys-file", keys, "--access-log", log]
    with Server(*options, "--tls-cert", certificate, "--tls-key", tmp_path / "key.pem", snapshot_file) as server:
        (url,) = server.urls.values()
        url = f"https://{url.partition('://')[2]}"
        client = client_for(url, verify=str(certificate))
        assert client.head_object(Bucket="snap", Key="disk")["ContentLength"] > 0
        until(lambda: log.read_text().endswith("\n"))  # a line is written when its answer is gone
        entry = json.loads(log.read_text())
        assert (entry["token"], entry["method"], entry["path"]) == (ACCESS_KEY, "HEAD", "/snap/disk")
        assert entry["host"] == url.partition("://")[2].rstrip("/")
        signed = client_for(url, verify=str(certificate), config={"signature_version": "s3v4"})
        link = signed.generate_presigned_url("get_object", {"Bucket": "snap", "Key": "info.json"})
        context = ssl.create_default_context(cafile=str(certificate))
        with urllib.request.urlopen(link, timeout=30, context=context) as answer:
            assert answer.status == 200
        signature = link.partition("X-Amz-Signature=")[2].partition("&")[0]
        until(lambda: "X-Amz-Signature=..." in log.read_text())
        assert signature not in log.read_text()
        write_secret(keys, "NEWKEY a-new-secret-of-some-length\n")
        server.process.send_signal(signal.SIGHUP)
        fresh = client_for(url, "NEWKEY", "a-new-secret-of-some-length", verify=str(certificate))
        until(lambda: lists_buckets(fresh))
        assert refusal(lambda: client.list_buckets()) == (403, "InvalidAccessKeyId")


def lists_buckets(client: Any) -> bool:
    """Whether the client's key counts by now."""
    try:
        return bool(client.list_buckets()["Buckets"])
    except ClientError:
        return False


def test_anybody_may_learn_the_region(endpoint: Endpoint) -> None:
    """Clients find it out by an unsigned HEAD of the bucket; the answer is the same whether there is such a bucket."""

    def region_of(error: ClientError) -> tuple[int, str | None]:
        told = error.response["ResponseMetadata"]
        return told["HTTPStatusCode"], told["HTTPHeaders"].get("x-amz-bucket-region")

    unsigned = client_for(endpoint.url, config={"signature_version": UNSIGNED})
    limited = client_for(endpoint.url, LIMITED_KEY, LIMITED_SECRET)
    stranger = client_for(endpoint.url, "STRANGER", SECRET)
    for client in (unsigned, limited, stranger):
        for bucket in ("snap", "no-such-bucket"):
            with pytest.raises(ClientError) as caught:
                client.head_bucket(Bucket=bucket)
            assert region_of(caught.value) == (403, REGION)
    for call in (lambda: unsigned.head_object(Bucket="snap", Key="disk"), lambda: unsigned.list_objects(Bucket="snap")):
        with pytest.raises(ClientError) as caught:
            call()
        assert region_of(caught.value) == (403, None)


def test_keys_and_the_anonymous(snapshot_file: Path, tmp_path: Path) -> None:
    keys = write_keys(tmp_path)
    for anonymous, status in (
        ("--allow-anonymous=nbd", 403),
        ("--allow-anonymous", 403),
        ("--allow-anonymous=s3", 200),
    ):
        with Server("--s3-port", 0, "--s3-keys-file", keys, anonymous, snapshot_file) as server:
            url = server.urls["s3"].replace("s3:", "http:").rstrip("/")
            assert fetch(f"{url}/snap/info.json")[0] == status
            assert client_for(url).list_buckets()["Buckets"]
    with Server("--s3-port", 0, "--s3-keys-file", keys, "--allow-anonymous=s3", snapshot_file) as server:
        url = server.urls["s3"].replace("s3:", "http:").rstrip("/")
        stranger = client_for(url, "STRANGER", SECRET)
        assert refusal(lambda: stranger.list_buckets()) == (403, "InvalidAccessKeyId")
        assert client_for(url).list_buckets()["Buckets"]


def test_no_log_has_a_signature_that_opens_anything(tmp_path: Path) -> None:
    """Neither the access log nor what the daemon says about a failure, however the parameter's name is written."""
    craft = Craft()
    craft.data(b"a" * 4096)
    craft.page()
    damaged = bytearray(craft.finish())
    damaged[4100] ^= 255
    snapshot, log = tmp_path / "hurt.hxz", tmp_path / "log"
    snapshot.write_bytes(damaged)
    keys = write_keys(tmp_path)
    with Server("--s3-port", 0, "--s3-keys-file", keys, "--access-log", log, snapshot) as server:
        url = server.urls["s3"].replace("s3:", "http:").rstrip("/")
        client = client_for(url, config={"signature_version": "s3v4"})
        link = client.generate_presigned_url("get_object", {"Bucket": "hurt", "Key": "disk"})
        signature = link.partition("X-Amz-Signature=")[2].partition("&")[0]
        for asked in (link, link.replace("Signature=", "%53ignature=")):
            assert fetch(asked)[0] == 500
        until(lambda: len(log.read_text().splitlines()) == 2)
        said = server.stderr()
    assert len(signature) == 64 and "CRC-32" in said
    assert signature not in said and signature not in log.read_text()
    assert said.count("ignature=...") == 2


BAD_FILES = {
    "": "has no key",
    "# nothing\n": "has no key",
    "KEY\n": "line 1",
    "KEY short\n": "line 1",
    "KEY a-secret-of-some-length\nKEY a-secret-of-some-length\n": "line 2",
    "\u00e9\u00e9\u00e9 a-secret-of-some-length\n": "line 1",
    # Whoever means a bucket, or hides one for a while, opens all of them.
    "KEY a-secret-of-some-length #bucket\n": "'#bucket' a bucket or a comment",
    "KEY a-secret-of-some-length one #two\n": "'#two' a bucket or a comment",
    "KEY #a-secret-of-some-length\n": "'#a-secret-of-some-length' a bucket",
}


def test_keys_files(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    for text, message in BAD_FILES.items():
        write_secret(path, text)
        with pytest.raises(ConfigError, match=message):
            KeyFile(str(path))
    path.write_bytes(b"\xff\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        KeyFile(str(path))
    with pytest.raises(ConfigError, match="No such file"):
        KeyFile(str(tmp_path / "none"))
    write_secret(path, "#C a-secret-of-some-length\nA#B secret#with#signs-in-it  bucket # a comment #1\n")
    keys = KeyFile(str(path))
    assert keys.may_read("A#B", ["bucket"])
    assert not keys.may_read("A#B", ["other"])
    assert not keys.may_read("other", ["bucket"])


def test_the_command_line(snapshot_file: Path, tmp_path: Path) -> None:
    def fails(*arguments: object) -> tuple[int, str]:
        done = run(sys.executable, ROOT / "hexz_serve.py", *arguments, snapshot_file, check=False)
        return done.returncode, done.stderr

    status, error = fails("--s3", "--bind", "0.0.0.0", "--s3-port", 0)
    assert (status, "--s3-keys-file" in error) == (2, True)
    write_secret(tmp_path / "keys", "KEY\n")
    status, error = fails("--s3-port", 0, "--s3-keys-file", tmp_path / "keys")
    assert (status, "line 1" in error, "Traceback" in error) == (78, True, False)
    archive = CORPUS / "0.8.0-zstd-dir.hxz"
    with Server("--s3-port", 0, "--http-port", 0, "--nbd-port", 0, f"dir={archive}", snapshot_file) as server:
        assert sorted(server.urls) == ["http", "nbd", "s3"]
        s3 = server.urls["s3"].replace("s3:", "http:").rstrip("/")
        same = [(f"{s3}/snap/disk", "/snapshots/snap/disk"), (f"{s3}/snap/snap.hxz", "/snap.hxz")]
        same.append((f"{s3}/dir/files/etc/run.sh", "/snapshots/dir/files/etc/run.sh"))
        for ours, theirs in same:
            with urllib.request.urlopen(ours) as one, urllib.request.urlopen(server.http + theirs) as other:
                assert one.headers["ETag"] == other.headers["ETag"]
                assert one.read() == other.read()
