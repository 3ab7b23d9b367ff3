"""boto3 against the daemon: what it lists, heads and downloads."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from hexz.protocol.s3.keys import bucket_of
from tests.conftest import CORPUS
from tests.peers import need_module
from tests.s3.serving import ACCESS_KEY, REGION, SECRET, Endpoint

boto3 = need_module("boto3")
Config = need_module("botocore.config").Config


def client_for(endpoint: Endpoint, access_key: str = ACCESS_KEY, secret: str = SECRET, **config: Any) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=endpoint.url,
        aws_access_key_id=access_key,
        aws_secret_access_key=secret,
        region_name=REGION,
        config=Config(retries={"max_attempts": 1}, **config),
    )


@pytest.fixture(scope="module")
def client(endpoint: Endpoint) -> Any:
    return client_for(endpoint)


def test_lists_buckets_and_objects(client: Any, disk: bytes, snapshot_file: Path) -> None:
    odd = bucket_of("An odd_name")
    assert [bucket["Name"] for bucket in client.list_buckets()["Buckets"]] == sorted(["snap", "dir", odd])
    listed = {item["Key"]: item for item in client.list_objects_v2(Bucket="snap")["Contents"]}
    assert list(listed) == ["disk", "info.json", "memory", "snap.hxz"]
    assert listed["disk"]["Size"] == len(disk)
    assert listed["snap.hxz"]["Size"] == snapshot_file.stat().st_size
    for key, item in listed.items():
        head = client.head_object(Bucket="snap", Key=key)
        assert (head["ContentLength"], head["ETag"]) == (item["Size"], item["ETag"])
        assert head["LastModified"] == item["LastModified"]


def test_downloads_in_parts(client: Any, disk: bytes, snapshot_file: Path) -> None:
    for key, data in {"disk": disk, "snap.hxz": snapshot_file.read_bytes()}.items():
        sink = io.BytesIO()
        config = need_module("boto3.s3.transfer").TransferConfig(
            multipart_threshold=1 << 20, multipart_chunksize=1 << 20
        )
        client.download_fileobj("snap", key, sink, Config=config)
        assert sink.getvalue() == data


def test_archives(client: Any) -> None:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket="dir", PaginationConfig={"PageSize": 2})
    keys = [item["Key"] for page in pages for item in page.get("Contents", ())]
    assert keys == sorted(keys, key=str.encode)
    assert any(key.startswith("files/") for key in keys)
    assert "dir.hxz" in keys
    whole = client.get_object(Bucket="dir", Key="dir.hxz")["Body"].read()
    assert whole == (CORPUS / "0.8.0-zstd-dir.hxz").read_bytes()
