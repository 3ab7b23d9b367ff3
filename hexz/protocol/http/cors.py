"""Cross-origin reads: what a browser has to be told before a page of another site may read (the Fetch standard)."""

from __future__ import annotations

from hexz.protocol.http.head import RequestHead
from hexz.protocol.http.responses import Response

__all__ = ["Cors"]

_EXPOSED = "Accept-Ranges, Content-Length, Content-Range, ETag, Last-Modified, X-Amz-Request-Id"
_ACCEPTED = (
    "Authorization, Range, If-Range, If-Match, If-None-Match, If-Modified-Since, If-Unmodified-Since, "
    # What S3's clients send from a page.
    "X-Amz-Content-Sha256, X-Amz-Date, X-Amz-User-Agent, X-Amz-Checksum-Mode, X-Amz-Object-Attributes, "
    "Amz-Sdk-Invocation-Id, Amz-Sdk-Request"
)


class Cors:
    """Lets pages of one origin, or of any (``*``), read."""

    def __init__(self, origin: str) -> None:
        self._origin = ("Access-Control-Allow-Origin", origin)
        self.headers: tuple[tuple[str, str], ...] = (self._origin, ("Access-Control-Expose-Headers", _EXPOSED))
        """What every response carries."""

    def preflight(self, head: RequestHead) -> Response | None:
        """The answer to a browser's question before its request; it carries no token, and the answer gives nothing."""
        if head.method != "OPTIONS" or "access-control-request-method" not in head.headers:
            return None
        allowed = (
            ("Access-Control-Allow-Methods", "GET, HEAD, OPTIONS"),
            ("Access-Control-Allow-Headers", _ACCEPTED),
            ("Access-Control-Max-Age", "86400"),
        )
        return Response(204, allowed)
