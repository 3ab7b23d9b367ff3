"""``/images/ID/extents``, ``checksum`` and ``flush``: what an image consists of, what it adds up to, its safety."""

from __future__ import annotations

import threading

from hexz.errors import BadRequest
from hexz.images import checksum
from hexz.images.backend import coalesced
from hexz.images.errors import Busy
from hexz.images.hexz import HexzSession
from hexz.images.registry import WAIT_S
from hexz.metrics.labels import EXTENTS
from hexz.protocol.http.conditions import Validators
from hexz.protocol.http.responses import REVALIDATE, VOLATILE, Representation, Response, represent
from hexz.protocol.images import extents_json, number, span_of
from hexz.servers.images.requests import Resource, json_answer
from hexz.servers.spool import Spool

__all__ = ["Checksum", "Extents", "Flush"]

MAX_LIST = 256 << 20
"""Longest list of extents in one answer, bytes: about four million of them."""

MAX_CHECKSUMS = 2
"""Computed at once in the whole process: each keeps a core busy for as long as the image is large."""
CHECKSUMS = threading.BoundedSemaphore(MAX_CHECKSUMS)


class Extents(Resource):
    """``/images/ID/extents``: what the bytes consist of."""

    methods = ("OPTIONS", "GET", "HEAD")
    op = EXTENTS

    def options(self) -> Response:
        """Which methods there are."""
        return Response(204, self.allow(self.methods))

    def get(self) -> Response:
        """The list; ``context=dirty`` for what changed, ``start`` and ``length`` for a part."""
        query = self.query("context", "start", "length")
        context = query.get("context", "zero")
        if context not in ("zero", "dirty"):
            raise BadRequest(f"context {context!r} is neither 'zero' nor 'dirty'")
        session = self.open()
        start, length = span_of(query, session.size)
        dirty = context == "dirty"
        spool = Spool()
        self.stack.callback(spool.close)
        for part in extents_json(coalesced(self.watched(session.extents(start, length, dirty))), dirty):
            spool.add(part)
            if spool.length > MAX_LIST:
                raise BadRequest("too many extents for one answer: ask for parts of the image with start and length")
        validators, kept = None, VOLATILE
        if isinstance(session, HexzSession):
            kept = REVALIDATE
            tag = f"{session.stream.etag}-{context}-{start}-{length}"
            validators = Validators(tag, session.stream.file.mtime)
        return represent(self.head, Representation(spool, spool.length, "application/json", validators, (kept,)))


class Checksum(Resource):
    """``/images/ID/checksum``: oVirt's hash of hashes."""

    methods = ("OPTIONS", "GET", "HEAD")

    def options(self) -> Response:
        """Which methods there are."""
        return Response(204, self.allow(self.methods))

    def get(self) -> Response:
        """The checksum; ``algorithm`` and ``block_size`` may be given."""
        query = self.query("algorithm", "block_size")
        algorithm = query.get("algorithm", checksum.DEFAULT_ALGORITHM)
        if algorithm not in checksum.ALGORITHMS:
            raise BadRequest(f"algorithm {algorithm!r} is not known here: {', '.join(checksum.ALGORITHMS)}")
        size = number(query, "block_size", checksum.DEFAULT_BLOCK)
        if not checksum.MIN_BLOCK <= size <= checksum.MAX_BLOCK or size % checksum.BLOCK_MULTIPLE:
            raise BadRequest(
                f"block_size is not a multiple of {checksum.BLOCK_MULTIPLE} "
                f"from {checksum.MIN_BLOCK} to {checksum.MAX_BLOCK}"
            )
        session = self.open()
        if not CHECKSUMS.acquire(timeout=WAIT_S):
            raise Busy(f"{MAX_CHECKSUMS} checksums are being computed, which is the most at once")
        try:
            value = checksum.checksum(session, algorithm, size, self.request.watch)
        finally:
            CHECKSUMS.release()
        return json_answer({"algorithm": algorithm, "block_size": size, "checksum": value})


class Flush(Resource):
    """``/images/ID/flush``."""

    methods = ("OPTIONS", "POST")

    def options(self) -> Response:
        """Which methods there are."""
        return Response(204, self.allow(self.methods))

    def post(self) -> Response:
        """Put what was written on the disk; on a read-only image there is nothing to do."""
        if not self.image.registration.read_only:
            self.check_writer()
        self.open(writing=True).flush()
        return json_answer({"ok": True})
