"""Something that is made when it is first wanted, by one thread, however many want it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Once"]

Made = TypeVar("Made")
LOOK_S = 1.0
"""How often who waits looks whether the value is still being made."""


class Once(Generic[Made]):
    """A value that takes long to make.  While one thread makes it, with no lock held, others wait for it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards everything below; never held while the value is made
        self._value: Made | None = None
        self._made = False
        self._making: threading.Event | None = None

    def get(self, make: Callable[[], Made]) -> Made:
        """The value, made by `make` if no thread has done so.

        Raises: what `make` raised; whoever waited meanwhile tries it anew.
        """
        while True:
            with self._lock:
                if self._made:
                    return self._value  # type: ignore[return-value]
                waited_for = self._making
                if waited_for is None:
                    mine = self._making = threading.Event()
                    break
            waited_for.wait(LOOK_S)
        try:
            value = make()
            with self._lock:
                self._value, self._made = value, True
            return value
        finally:
            with self._lock:
                self._making = None
            mine.set()
