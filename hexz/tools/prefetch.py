"""Lists of what is read first: read them, get them from a daemon."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Sequence

from hexz.errors import ConfigError, SystemFailure, UsageError
from hexz.format.errors import DamagedList
from hexz.format.prefetch import MAX_LIST, PrefetchList, parse_prefetch
from hexz.secretfile import read_secret
from hexz.tools.output import whole_file

__all__ = ["read_lists", "record"]

TIMEOUT_S = 30.0


def read_lists(paths: Sequence[str]) -> list[PrefetchList]:
    """What the lists in these files name.  Raises: ConfigError."""
    found = []
    for path in paths:
        try:
            with open(path, encoding="utf-8") as file:
                found += parse_prefetch(file.read(MAX_LIST + 1))
        except OSError as error:
            raise ConfigError(f"{path}: cannot read the list: {error.strerror}") from None
        except (UnicodeDecodeError, DamagedList) as error:
            raise ConfigError(f"{path}: is no list of what to fetch: {error}") from None
    return found


def record(url: str, out: str, token_file: str | None, replace: bool) -> int:
    """Write what a daemon read of a snapshot so far into a list; the number of spans.

    `url` is the snapshot's there: ``http://HOST:PORT/snapshots/NAME``.
    Raises: UsageError, ConfigError, SystemFailure.
    """
    if not url.startswith(("http://", "https://")) or "/snapshots/" not in url:
        raise UsageError(f"{url!r}: the address of a snapshot at a daemon is http://HOST:PORT/snapshots/NAME")
    request = urllib.request.Request(f"{url.rstrip('/')}/prefetch")
    if token_file is not None:
        token = read_secret(token_file, "token").decode("ascii", "replace").strip()
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
            text = answer.read(MAX_LIST + 1).decode("ascii")
        lists = parse_prefetch(text)
    except urllib.error.HTTPError as error:
        raise SystemFailure(f"{url}: the daemon answered {error.code} {error.reason}") from None
    except OSError as error:
        raise SystemFailure(f"{url}: {getattr(error, 'reason', error)}") from None
    except (UnicodeDecodeError, DamagedList) as error:
        raise SystemFailure(f"{url}: this is no list of what was read: {error}") from None
    with whole_file(out, replace=replace) as file:
        file.write(text.encode("ascii"))
    return sum(len(one.spans) for one in lists)
