"""What else to do about an error where the system's own unit runs the daemon: options and files are others there."""

from __future__ import annotations

import os
import re

from hexz.daemon.unit_files import HIDDEN

__all__ = ["STORE", "advised"]

STORE = "HEXZ_CREDENTIALS"
"""The variable in which the system's units say where their credentials are: a path, to which ``.NAME`` is added."""
_OPTIONS = {
    "--token-file": "tokens",
    "--s3-keys-file": "s3-keys",
    "--password-file": "password",
    "--seal-key-file": "seal-key",
    "--s3-credentials-file": "s3-credentials",
    "--remote-token-file": "remote-tokens",
}
"""The options that have a credential in their place (`hexz.rights.secrets.CREDENTIALS`)."""
_WANTED = re.compile(r"\bgive (?:its \w+ with )?(--[a-z0-9-]+)")
"""How an error asks for a file that was not given."""
_OUT_OF_SIGHT = ("permission denied", "no such file")


def advised(message: str) -> str:
    """`message`, and what a unit's administrator has to do about it if that differs; without such a unit as it is."""
    store = os.environ.get(STORE)
    if not store:
        return message
    wanted = _WANTED.search(message)
    if wanted is not None and wanted[1] in _OPTIONS:
        return f"{message} (for this unit: put it in {store}.{_OPTIONS[wanted[1]]})"
    if not any(words in message.lower() for words in _OUT_OF_SIGHT):
        return message
    for folder in HIDDEN:
        if message.startswith(f"{folder}/"):
            setting = "PrivateTmp=" if folder.endswith("tmp") else "ProtectHome="
            return f"{message} ({setting} of the unit hides {folder}: move the file, to /var/lib/hexz-serve or /srv)"
    if "permission denied" in message.lower() and message.startswith("/"):
        return f"{message} (the unit has a user of its own: chmod o+r, or a group in SupplementaryGroups=)"
    return message
