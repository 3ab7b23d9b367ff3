"""README and the manual pages: complete, well-formed, and every example works as pasted."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.documents.blocks import DOCUMENTS, MANUALS, README, Block, blocks, missing_lines, unescaped
from tests.peers import ROOT, can_boot, missing, need, run

MARK = "@@ block "
NOT_IN_THE_BOX = ("make run", "apt install")
"""How blocks begin that need a terminal or a network: `make check-newcomer` runs those."""
LONGEST_README = 200
"""Lines: five minutes of reading."""


def script(document: Path) -> str:
    """All blocks of a document as one script, as a reader pastes them into one shell."""
    parts = []
    for number, block in enumerate(blocks(document)):
        if block.kind in ("sh", "python", "nginx") and not block.text.startswith(NOT_IN_THE_BOX):
            parts.append(f"echo '{MARK}{number}'\n")
        if block.kind == "sh" and not block.text.startswith(NOT_IN_THE_BOX):
            parts.append(block.text)
        elif block.kind == "python":
            parts.append(f"cat >block.py <<'PASTED'\n{block.text}PASTED\n{sys.executable} block.py\n")
        elif block.kind == "nginx":
            parts.append(f"cat >>/etc/nginx/sites-enabled/snapshots <<'PASTED'\n{block.text}PASTED\n")
    return "".join(parts)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("document", [*filter(script, DOCUMENTS)], ids=lambda document: document.name)
def test_every_example_works_as_pasted(document: Path, snapshot_file: Path, disk_image: Path, tmp_path: Path) -> None:
    for program in ("systemctl", "curl", "nbdfuse", "qemu-img", "aws", "rclone", "openssl", "sshd", "nginx", "xxd"):
        need(program)
    lacking = can_boot()
    if lacking:
        missing(f"systemd, and {lacking} to boot it in a box")
    (tmp_path / "pasted.sh").write_text(script(document))
    shown = {str(path.parent) for path in (snapshot_file, disk_image)} | {str(tmp_path)}
    if str(ROOT).startswith("/tmp/"):
        shown.add(str(ROOT))
    box = ["env", f"BOX_SHOW={' '.join(sorted(shown))}", "bash", ROOT / "tests/daemon/box.sh"]
    paste = ["bash", ROOT / "tests/documents/paste.sh", ROOT, tmp_path / "pasted.sh", snapshot_file, disk_image]
    if document != README:
        paste.append("installed")
    done = run(*box, *paste, timeout=300, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    printed = {int(part.partition("\n")[0]): part for part in done.stdout.split(MARK)[1:]}
    all_blocks = blocks(document)
    for number, block in enumerate(all_blocks):
        if block.kind == "text":
            assert not missing_lines(block.text, printed[number - 1]), printed[number - 1]


def test_promised_output_that_is_not_there_is_noticed() -> None:
    printed = "one\ntwo of them\nthree\n"
    assert not missing_lines("one\ntwo\n", printed)
    assert not missing_lines("two ... them\n", printed)
    assert missing_lines("two\none\n", printed) == ["one"]
    assert missing_lines("four\n", printed) == ["four"]


@pytest.mark.parametrize("manual", MANUALS, ids=lambda manual: manual.name)
def test_manual_pages_are_well_formed(manual: Path) -> None:
    need("man")
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", str(manual)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "MANWIDTH": "80", "LC_ALL": "C.UTF-8"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    plain = re.sub(r".\x08", "", done.stdout)
    for block in blocks(manual):
        longest = max(block.text.splitlines(), key=len)
        assert longest.strip() in plain, f"an example is not shown as it would be pasted: {longest}"


def options_in(text: str) -> set[str]:
    """The long options that a help text or a page names."""
    return set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]+", text))


def plain(page: Path) -> str:
    """A manual page's source without its fonts and escapes."""
    return unescaped(re.sub(r"\\f[BIR]|^\.\\\".*$", "", page.read_text(), flags=re.MULTILINE))


def test_the_manual_explains_every_option() -> None:
    help_text = run(sys.executable, "hexz_serve.py", "--help", "all", cwd=ROOT, check=False).stdout
    if not help_text:
        help_text = run(sys.executable, "hexz_serve.py", "--help", cwd=ROOT).stdout
    told = options_in(help_text) - {"--help"}
    items = re.findall(r"^\.TP\n(--\S+)", plain(ROOT / "systemd" / "man" / "hexz-serve.8"), re.MULTILINE)
    assert told == options_in(" ".join(items)) - {"--help"}


def test_the_manual_explains_every_command_of_the_toolbox() -> None:
    page = plain(ROOT / "systemd" / "man" / "hexz.1")
    commands = re.findall(r"^    (\w+)\s", run(sys.executable, "-m", "hexz", "--help", cwd=ROOT).stdout, re.MULTILINE)
    assert {"pack", "info", "verify", "cat", "extract", "commit"} <= set(commands)
    for command in commands:
        section = page.partition(f".SH {command.upper()}\n")[2].partition("\n.SH ")[0]
        help_text = run(sys.executable, "-m", "hexz", command, "--help", cwd=ROOT).stdout
        lacking = options_in(help_text) - options_in(section) - {"--help"}
        assert section, command
        assert not lacking, command


def test_readme_is_a_first_page() -> None:
    text = README.read_text()
    assert text.count("\n") <= LONGEST_README
    for page in MANUALS:
        assert f"man {page.stem}" in text or f"`{page.stem}`" in text, f"{page.name} is not linked"
    assert options_in(text) <= options_in(" ".join(map(plain, MANUALS)))
    assert "python " not in re.sub(r"python3 ?", "", text), "Debian has no program called python"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_what_an_example_starts_it_stops(document: Path) -> None:
    running: list[Block] = []
    for block in blocks(document):
        if block.kind == "sh":
            for line in block.text.splitlines():
                if line.startswith("hexz-serve") and "--daemon" in line:
                    running.append(block)
                if "--stop" in line:
                    running.pop()
                assert not re.search(r"hexz-serve .*&$", line), f"a daemon in the background: {line}"
    assert not running, f"still running at the end: {running}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_the_tests_that_a_document_names_are_there(document: Path) -> None:
    text = document.read_text() if document == README else plain(document)
    named = re.findall(r"(?:[\w-]+/)*test_\w+\.py", text)
    assert not [name for name in named if not (ROOT / "tests" / name.removeprefix("tests/")).is_file()]
    assert named or document.name != "hexz-serve-security.7"
