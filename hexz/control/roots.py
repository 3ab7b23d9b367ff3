"""Where files may be that are named through the control socket, or by a supervisor."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence

from hexz.errors import HexzError, SnapshotNotFound, SnapshotUnreadable
from hexz.storage.remote import is_remote, public_name, real_path

__all__ = ["Roots"]


class Roots:
    """The directories of ``--control-root``; without one, everywhere."""

    def __init__(self, directories: Sequence[str] = (), own: Callable[[], Iterable[str]] = tuple) -> None:
        """`own` gives the files that this process's command line names: a supervisor may name them as well."""
        self._directories = [os.path.realpath(directory) for directory in directories]
        self._own = own

    def allowed(self, source: str) -> str:
        """The real path of `source`, to be opened instead of it.

        Raises: SnapshotUnreadable in the same words whether there is such a file or not; SnapshotNotFound.
        """
        try:
            path = real_path(source)
        except ValueError:  # a NUL
            raise SnapshotNotFound(repr(source), "not a possible file name") from None
        inside = not is_remote(path) and any(os.path.commonpath([root, path]) == root for root in self._directories)
        if self._directories and not inside:
            raise SnapshotUnreadable(public_name(source), "is not below a directory given with --control-root")
        return path

    def inherited(self, source: str) -> str:
        """The same for a file that another process served, where also those named on the command line may be.

        Raises: SnapshotUnreadable, SnapshotNotFound.
        """
        try:
            return self.allowed(source)
        except SnapshotUnreadable as error:
            path = real_path(source)
            if path in self._own_paths():
                return path
            raise SnapshotUnreadable(public_name(source), f"{error.reason}, nor named on the command line") from None

    def _own_paths(self) -> set[str]:
        try:
            return {real_path(path) for path in self._own()}
        except HexzError:  # what it names is not there
            return set()
