"""``python -m tests.corpus record|replay FILE [--checkout DIR]``, and ``check COMMIT``, which does both."""

from __future__ import annotations

import argparse
import difflib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from tests.corpus import control_cases, daemons, http_cases, images_cases, nbd_cases, s3_cases
from tests.corpus.normal import log_lines, normal, shown, without_figures
from tests.corpus.talk import Case, Exchange, converse

ROOT = Path(__file__).resolve().parent.parent.parent
Lines = dict[str, list[list[str]]]


def cases() -> Iterator[Case]:
    """Every conversation; the order matters only to those that write."""
    for module in (http_cases, s3_cases, images_cases, control_cases, nbd_cases):
        yield from module.cases()


def ask(checkout: Path, python: str) -> Lines:
    """Every exchange with the daemons of `checkout`, without what varies: what was sent, what came."""
    found: Lines = {}

    def keep(exchange: Exchange, figures: bool = False) -> None:
        if exchange.name in found:
            raise SystemExit(f"two cases are called {exchange.name}")
        answer = normal(exchange.answer, running.paths)
        answer = without_figures(answer) if figures else answer
        found[exchange.name] = [shown(normal(exchange.sent, running.paths)), shown(answer)]

    with daemons.running(checkout, python) as running:
        control_cases.FOLDER[:] = [running.folder]
        for case in cases():
            secure = case.server == "secret.http"
            for exchange in converse(case, running.places[case.server], secure):
                keep(exchange, case.figures)
        for daemon in running.daemons:
            keep(Exchange(f"{daemon.name}: status at the end", b"SIGTERM", str(daemon.stop()).encode()))
            for what in (daemon.log, running.folder / f"{daemon.name}.access"):
                if what.exists():
                    lines = log_lines(normal(what.read_bytes(), running.paths))
                    found[f"{daemon.name}: lines of {what.name}"] = [[], [x for line in lines for x in shown(line)]]
    return found


def differences(before: Lines, after: Lines) -> Iterator[str]:
    """A readable diff of each exchange that is not as it was."""
    for name in sorted({*before, *after}):
        if name not in before or name not in after:
            yield f"=== {name}: only in {'this run' if name in after else 'the recording'}"
            continue
        for title, old, new in zip(("what was sent", "the answer"), before[name], after[name]):
            if old != new:
                sent = "\n".join(f"  > {line}" for line in after[name][0][:12])
                diff = "\n".join(difflib.unified_diff(old, new, "recorded", "replayed", lineterm="", n=2))
                yield f"=== {name}: {title} differs\n{sent}\n{diff}"


def main() -> int:
    """The command; status 1 when anything differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.corpus", description=__doc__)
    parser.add_argument("what", choices=("record", "replay", "check"))
    parser.add_argument("file", metavar="FILE|COMMIT", help="the recording; for check the commit to compare with")
    parser.add_argument("--checkout", type=Path, default=ROOT, metavar="DIR", help="whose daemon is asked (this one)")
    parser.add_argument("--python", default=sys.executable, help="the interpreter that runs the daemon (this one)")
    options = parser.parse_args()
    began = time.monotonic()
    if options.what == "check":
        before = of_commit(options.file, options.python)
    elif options.what == "record":
        found = ask(options.checkout.resolve(), options.python)
        Path(options.file).write_text(json.dumps(found, indent=1))
        print(f"{len(found)} exchanges recorded in {time.monotonic() - began:.0f} s")
        return 0
    else:
        before = json.loads(Path(options.file).read_text())
    after = ask(options.checkout.resolve(), options.python)
    different = list(differences(before, after))
    print("\n".join([*different, f"{len(after)} exchanges, {len(different)} differences"]))
    return 1 if different else 0


def of_commit(commit: str, python: str) -> Lines:
    """What the daemon of `commit` answers, out of a checkout of its own that goes away again."""
    folder = ROOT / "build" / "corpus-base"
    git = ["git", "-C", str(ROOT), "worktree"]
    folder.parent.mkdir(exist_ok=True)
    subprocess.run([*git, "remove", "--force", str(folder)], stderr=subprocess.DEVNULL, check=False)
    subprocess.run([*git, "add", "--quiet", "--detach", "--force", str(folder), commit], check=True)
    try:
        return ask(folder, python)
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


if __name__ == "__main__":
    sys.exit(main())
