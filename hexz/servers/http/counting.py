"""What the requests of one HTTP connection count as."""

from __future__ import annotations

from time import perf_counter

from hexz.errors import HexzError
from hexz.metrics.counters import FAST_S, Cell, Meter, Metrics, Purpose, waited
from hexz.metrics.labels import ABORTED, FAILED, INFO, OK, OTHER, READ, REFUSED, WRITE
from hexz.protocol.http.responses import Piece, Response

__all__ = ["HttpCounting"]

_OP_OF_METHOD = {"GET": READ, "HEAD": INFO, "PUT": WRITE, "PATCH": WRITE}
"""What a request is taken for until its response says what it was."""
NOT_MODIFIED = 304


class HttpCounting:
    """The figures of one connection; used by its thread, or by the crowd's while that serves it."""

    def __init__(self, metrics: Metrics, scheme: str, peer: str) -> None:
        self._metrics = metrics
        self._protocol = scheme.removesuffix("s")
        self._peer = peer
        self._method = ""
        self._flight = 0
        self._began = perf_counter()
        self._waited = 0
        self._cell: Cell | None = None
        self._next: Purpose | None = None

    def begin(self, method: str) -> None:
        """A request has come."""
        self.forget()
        self._method = method
        self._began = perf_counter()
        self._waited = waited.size
        self._flight = self._metrics.flights.begin(self._protocol, _OP_OF_METHOD.get(method, OTHER), self._peer)

    def about(self, response: Response) -> None:
        """The request turned out to be this."""
        purpose = response.purpose
        if not isinstance(purpose, Purpose):
            return
        piece = next((part for part in response.body if isinstance(part, Piece)), None)
        offset, length = (piece.offset, piece.length) if piece is not None else (0, 0)
        protocol = purpose.protocol or self._protocol
        name = purpose.metrics.name if purpose.metrics else ""
        self._metrics.flights.describe(self._flight, protocol, purpose.op, name, purpose.stream, offset, length)

    def end(self, response: Response, size: int, error: BaseException | None = None) -> None:
        """The response was sent, `size` bytes of its body; or sending it ended with `error`."""
        if error is not None:
            outcome = _outcome_of(error)
        elif response.status >= 500:
            outcome = FAILED
        else:
            outcome = REFUSED if response.status >= 400 else OK
        purpose = _purpose_of(response)
        if purpose.op == READ and (self._method == "HEAD" or response.status == NOT_MODIFIED):
            purpose = purpose._replace(op=INFO)
        self._meter(purpose).add(outcome, size, perf_counter() - self._began, waited.size - self._waited)
        self.forget()

    def trouble(self, error: Exception) -> None:
        """Good data could not be had."""
        self._metrics.events.add(str(error))

    def forget(self) -> None:
        """The request that was begun is over."""
        if self._flight:
            self._metrics.flights.end(self._flight)
            self._flight = 0

    def _meter(self, purpose: Purpose) -> Meter:
        metrics = purpose.metrics or self._metrics.others
        return metrics.meter(purpose.protocol or self._protocol, purpose.op, purpose.stream)

    # Repeated requests, which are answered from the cache

    def prepare(self, response: Response) -> None:
        """Requests like this one follow."""
        self._next = _purpose_of(response)

    def repeated(self, size: int, began: float, error: BaseException | None = None) -> None:
        """One that came at `began` (``perf_counter``) was answered with `size` bytes; or ended there with `error`."""
        cell = self._cell
        if self._next is not None or cell is None:
            cell = self._switch()
        seconds = perf_counter() - began
        if error is not None:
            cell.meter.add(_outcome_of(error), size, seconds)
        elif size == cell.usual and seconds <= FAST_S:
            cell.fast += 1
            cell.fast_seconds += seconds
        else:
            cell.add(size, seconds)

    def _switch(self) -> Cell:
        purpose, self._next = self._next or Purpose(None, OTHER), None
        meter = self._meter(purpose)
        cell = self._cell
        if cell is None or meter is not cell.meter:
            self.close()
            cell = self._cell = meter.cell()
        return cell

    def close(self) -> None:
        """The connection ends."""
        self.forget()
        if self._cell is not None:
            self._cell.close()
            self._cell = None


def _outcome_of(error: BaseException) -> str:
    """How a response ended that was cut short: for want of data, or because the peer left."""
    return FAILED if isinstance(error.__cause__, HexzError) else ABORTED


def _purpose_of(response: Response) -> Purpose:
    return response.purpose if isinstance(response.purpose, Purpose) else Purpose(None, OTHER)
