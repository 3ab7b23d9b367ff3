"""What all listeners of HTTP have in common: an application, and the rules before it."""

from __future__ import annotations

from hexz.metrics import Metrics
from hexz.protocol.http.cors import Cors
from hexz.servers.crowd import Crowd
from hexz.servers.http.access import Gate
from hexz.servers.http.application import PLAIN_RULES, Application, Policy, RequestLog, Rules
from hexz.servers.http.receiving import IDLE_S
from hexz.servers.tls import TlsContext

__all__ = ["HttpSite"]

COMPANY = 2
"""So many connections that ask for cached ranges at once are served together: three times what their threads reach."""


class HttpSite:
    """An application behind HTTP/1.1 and HTTP/1.0, with TLS if there is a certificate; for any number of listeners."""

    def __init__(
        self,
        application: Application,
        gate: Policy | None = None,
        access_log: RequestLog | None = None,
        tls: TlsContext | None = None,
        cors: str | None = None,
        scheme: str = "http",
        rules: Rules = PLAIN_RULES,
        metrics: Metrics | None = None,
    ) -> None:
        """`cors` is the origin that pages may read from (``*`` for any).

        Without an `access_log` nothing is written down; without `metrics` nothing is counted where anybody sees it.
        """
        self.application = application
        self.policy: Policy = gate or Gate()
        self.access_log = access_log
        self.tls = tls
        self.cors = Cors(cors) if cors is not None else None
        self.scheme = f"{scheme}s" if tls else scheme
        self.rules = rules
        self.metrics = metrics
        self.answers_spares = rules.spare_paths is None or bool(rules.spare_paths)
        self.crowd = Crowd("http", COMPANY, IDLE_S)
