"""How much is fetched beside what was asked for: as much as is mostly used, and as a round trip makes worth it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from hexz.storage.interface import Around
from hexz.storage.remote.server import Measured

__all__ = ["LISTED_WASTE", "Speculation", "joined", "widened"]

FREE = 1 << 20
"""So many bytes may be fetched in vain before anything was used."""
MOST_CREDIT = 4 << 20
"""As many more may be as turned out to be used, up to this: what is used late looks for long as if it were in vain."""
REQUEST_S = 0.0003
"""What a request takes besides its round trip: the work of both sides."""
NEAR = 1
"""Neighbours on each side that come along."""
BRIDGE = 6
"""So many do where what lies beyond them was read already: a gap in what is used is mostly used in the end."""
MOST_WASTE = 0.25
"""Neighbours are fetched together while what lies between is at most this share of them."""
LISTED_WASTE = 0.08
"""The same for a list: many requests are under way at once, so that one more costs less than what lies between."""
LARGEST_GAP = 256 << 10


class Speculation:
    """The account of one file: bytes fetched, and bytes used.  Its sums take no lock: none has to be exact."""

    def __init__(self, share: float, measured: Measured) -> None:
        """Bytes in vain are kept below this `share` of those used."""
        self._share = share
        self._measured = measured
        self.fetched = 0
        self.used = 0
        self.hits = 0
        """Bytes used that had come along with others."""

    def room(self) -> int:
        """Bytes that may come along now: as many as the account allows, and a round trip is worth."""
        vain = max(0, self.fetched - self.used)
        allowed = int(self._share * self.used) + min(FREE + self.hits, MOST_CREDIT) - vain
        measured = self._measured
        # Whoever else waits for this server gets less of its answers meanwhile.
        worth = int((measured.round_trip_s + REQUEST_S) * measured.bytes_per_s) // max(measured.in_flight, 1)
        return min(allowed, worth) if self._share > 0 else 0


def widened(start: int, stop: int, around: Around, low: int, high: int, room: int) -> tuple[int, int]:
    """[start, stop), longer by whole neighbours that lie within [low, high), of at most `room` bytes together."""
    first, last = start, stop
    before = _wanted(around.before, around.met_before)
    behind = _wanted(around.behind, around.met_behind)
    for number in range(max(len(before), len(behind))):
        if number < len(behind) and stop < behind[number] <= min(high, last + room):
            room -= behind[number] - last
            last = behind[number]
        if number < len(before) and max(low, first - room) <= before[number] < start:
            room -= first - before[number]
            first = before[number]
    return first, last


def _wanted(pieces: Sequence[int], met: bool) -> Sequence[int]:
    return pieces if met and len(pieces) <= BRIDGE else pieces[:NEAR]


def joined(ranges: Iterable[tuple[int, int]], most: int, waste: float = MOST_WASTE) -> list[tuple[int, int]]:
    """The spans (start, end), sorted, touching ones and near neighbours as one, in pieces of at most `most` bytes.

    Bytes between neighbours are at most the share `waste` of theirs.
    """
    merged: list[list[int]] = []
    for first, last in sorted(ranges):
        if merged and first <= merged[-1][1]:
            merged[-1][1] = max(last, merged[-1][1])
        elif first < last:
            merged.append([first, last])
    room = waste * sum(last - first for first, last in merged)
    bridged = set()
    for gap, behind in sorted((after[0] - before[1], after[0]) for before, after in zip(merged, merged[1:])):
        room -= gap
        if room < 0 or gap > LARGEST_GAP:
            break
        bridged.add(behind)
    pieces: list[list[int]] = []
    for first, last in merged:
        if pieces and first in bridged and last - pieces[-1][0] <= most:
            pieces[-1][1] = last
        else:
            pieces += [[start, min(start + most, last)] for start in range(first, last, most)]
    return [(first, last) for first, last in pieces]
