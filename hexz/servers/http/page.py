"""The page that a browser gets at ``/``: what is served, how large, and where to click."""

from __future__ import annotations

from html import escape
from typing import Any
from urllib.parse import quote

from hexz import __version__
from hexz.units import format_size

__all__ = ["index_page"]

_STYLE = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#687385;--line:#d9dee6;--card:#fff;--ground:#f4f6f9;--bar:#3b6fd4}
@media(prefers-color-scheme:dark){:root{--ink:#e6eaf0;--soft:#94a0b3;--line:#313a48;--card:#1d2430;--ground:#141920;
--bar:#6f9bf0}}
body{font:16px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--ground);margin:0 auto;padding:2rem 1rem;
max-width:60rem}
h1{font-size:1.4rem;margin:0 0 1.5rem}h1 small{color:var(--soft);font-weight:400;font-size:.9rem}
article{background:var(--card);border:1px solid var(--line);border-radius:.6rem;padding:1rem 1.25rem;margin:0 0 1rem}
h2{font-size:1.1rem;margin:0 0 .5rem;overflow-wrap:anywhere}
.tag{font-size:.75rem;font-weight:400;color:var(--soft);border:1px solid var(--line);border-radius:1rem;
padding:.1rem .6rem;margin-left:.4rem}
table{border-collapse:collapse;width:100%}td{padding:.25rem .75rem .25rem 0;vertical-align:middle}
td.size{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}td.wide{width:45%}
.bar{height:.5rem;border-radius:.25rem;background:var(--line);overflow:hidden}
.bar i{display:block;height:100%;background:var(--bar)}
a{color:var(--bar)}footer{color:var(--soft);font-size:.85rem;margin-top:2rem}article footer{margin-top:.5rem}
"""


def index_page(snapshots: list[dict[str, Any]], notes: dict[str, str], count: int, following: str | None) -> str:
    """The page for a list that ``/snapshots`` gives, with a line about each by its name.

    `count` are all there are, `following` the name behind which the next page begins, if there is one.
    """
    cards = "".join(_card(snapshot, notes.get(snapshot["name"], "")) for snapshot in snapshots)
    if not cards:
        cards = "<p>No snapshot is served.</p>"
    more = f"<p><a href='/?after={quote(following, safe='')}'>more</a></p>" if following is not None else ""
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>hexz-serve</title><style>{_STYLE}</style>"
        f"<h1>hexz-serve <small>{count} snapshot{'s' * (count != 1)}</small></h1>{cards}{more}"
        f"<footer>hexz-serve {escape(__version__)} &middot; <a href='/snapshots'>JSON</a> &middot; "
        "<a href='/metrics'>metrics</a></footer></html>"
    )


def _card(snapshot: dict[str, Any], note: str) -> str:
    marks = [name for name in ("default", "thin", "encrypted", "archive") if snapshot[name]]
    tags = "".join(f"<span class=tag>{mark}</span>" for mark in (snapshot["compression"], *marks))
    largest = max([snapshot["file_size"], *(s["size"] for s in snapshot["streams"].values())]) or 1
    rows = [_row("snapshot file", snapshot["file"], snapshot["file_size"], largest)]
    rows += [_row(name, stream["url"], stream["size"], largest) for name, stream in snapshot["streams"].items()]
    files = ""
    if snapshot["archive"]:
        base = snapshot["info"].rpartition("/")[0]
        files = f"<a href='{escape(base, quote=True)}/files/'>files</a> &middot; "
    return (
        f"<article><h2>{escape(snapshot['name'])}{tags}</h2><table>{''.join(rows)}</table>"
        f"{files}<a href='{escape(snapshot['info'], quote=True)}'>facts</a><footer>{escape(note)}</footer></article>"
    )


def _row(label: str, url: str, size: int, largest: int) -> str:
    return (
        f"<tr><td><a href='{escape(url, quote=True)}'>{escape(label)}</a><td class=size>{format_size(size)}"
        f"<td class=wide><div class=bar><i style='width:{100 * size / largest:.1f}%'></i></div>"
    )
