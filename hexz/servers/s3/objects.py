"""The buckets and objects that the catalog makes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from functools import cached_property, partial

from hexz.catalog import Catalog, Lease
from hexz.errors import NoSuchSnapshot
from hexz.protocol.s3.errors import S3Error
from hexz.protocol.s3.keys import INFO, bucket_of
from hexz.protocol.s3.xml import ObjectEntry
from hexz.servers.http.objects import (
    ARCHIVE_FOLDER,
    OCTETS,
    Archive,
    Contents,
    archive_of,
    archived_contents,
    archived_etag,
    file_contents,
    public_facts,
)
from hexz.snapshot import Snapshot

__all__ = ["Buckets", "BytesSource", "Objects"]


class BytesSource:
    """A few bytes in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, offset: int, length: int) -> list[bytes]:
        """A span of them."""
        return [self._data[offset : offset + length]]


class Objects:
    """What is in one bucket, while its lease lasts."""

    def __init__(self, lease: Lease) -> None:
        self._name = lease.name
        self._snapshot = lease.snapshot
        self._plain: dict[str, Callable[[], Contents]] = {
            INFO: self._info,
            f"{lease.name}.hxz": lambda: file_contents(lease.snapshot),
        }
        for stream in lease.snapshot.streams.values():
            self._plain[stream.name] = partial(Contents, stream, stream.size, OCTETS, stream.etag)

    @cached_property
    def _archive(self) -> Archive | None:
        """What is below `ARCHIVE_FOLDER`: read when somebody asks for it.  Raises: SnapshotTooLarge, StorageError."""
        return archive_of(self._snapshot)

    def _info(self) -> Contents:
        body = json.dumps(public_facts(self._name, self._snapshot)).encode() + b"\n"
        etag = f"{hashlib.blake2b(body, digest_size=16).hexdigest()}-1"
        return Contents(BytesSource(body), len(body), "application/json", etag)

    def keys(self) -> list[str]:
        """All keys, sorted."""
        plain = sorted(self._plain)
        return plain if self._archive is None else sorted([*plain, *self._archive.keys])

    def get(self, key: str) -> Contents:
        """The object called `key`.

        Raises: S3Error; NoSuchSnapshot when it lies in a stream that is missing.
        """
        plain = self._plain.get(key)
        if plain is not None:
            return plain()
        below = key.startswith(ARCHIVE_FOLDER)
        file = self._archive.files.get(key) if below and self._archive is not None else None
        if file is None:
            raise S3Error("NoSuchKey", None, (("Key", key),))
        return archived_contents(self._snapshot, file)

    def is_own(self, key: str) -> bool:
        """Whether the object is made of the snapshot's own file alone, of whose parents nothing is in it."""
        return key in self._plain and key not in self._snapshot.streams

    def entry(self, key: str) -> ObjectEntry:
        """The object called `key`, one of `keys`, as it is listed."""
        modified = self._snapshot.mtime
        plain = self._plain.get(key)
        if plain is None and self._archive is not None:
            file = self._archive.files[key]
            return ObjectEntry(key, modified, archived_etag(self._snapshot, file), file.size)
        contents = self.get(key)
        return ObjectEntry(key, modified, contents.etag, contents.size)


class Buckets:
    """The catalog as buckets, one for each snapshot."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def names(self) -> dict[str, str]:
        """Bucket to snapshot, sorted."""
        return dict(sorted((bucket_of(name), name) for name in self._catalog.names()))

    def leases(self, names: Iterable[str]) -> Iterator[tuple[str, Lease]]:
        """Each of these snapshots with its name, but for those that went away a moment ago."""
        for name in names:
            try:
                lease = self._catalog.lease(name)
            except NoSuchSnapshot:
                continue
            with lease:
                yield name, lease

    def lease(self, bucket: str) -> Lease:
        """The snapshot behind a bucket, which may also be called by the snapshot's own name.

        Raises: S3Error.
        """
        name = bucket if bucket in self._catalog else self.names().get(bucket)
        try:
            if name is not None:
                return self._catalog.lease(name)
        except NoSuchSnapshot:
            name = None  # it went away a moment ago
        raise S3Error("NoSuchBucket", None, (("BucketName", bucket),))

    def names_of(self, path: str) -> tuple[str, ...]:
        """The snapshots that are served from the file at this real path."""
        return self._catalog.names_of(path)

    def serves(self, name: str, snapshot: Snapshot) -> bool:
        """Whether `name` still means `snapshot`."""
        return self._catalog.serves(name, snapshot)
