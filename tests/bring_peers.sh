#!/bin/sh
# bring_peers.sh: the programs and packages that the tests talk to.  PYTHON: the interpreter of the .venv.
# PEERS=    brings what it may: Debian's packages as root or with passwordless sudo, then the Python packages
# PEERS=yes asks for sudo's password, and fails when something cannot be had
# PEERS=no  does nothing
set -eu
cd "$(dirname "$0")/.."
[ "${PEERS:-}" != no ] || exit 0

missing=
if command -v dpkg-query >/dev/null; then
    for package in $(grep -v '^#' tests/debian-packages.txt); do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || missing="$missing $package"
    done
fi
if [ "$(id -u)" = 0 ]; then become=
elif [ "${PEERS:-}" = yes ]; then become=sudo
elif sudo -n true 2>/dev/null; then become="sudo -n"
else become=none
fi

if [ -n "$missing" ] && [ "$become" != none ] && command -v apt-get >/dev/null; then
    echo "installing $(echo "$missing" | wc -w) Debian packages that the tests talk to (PEERS=no does without)"
    log=$(mktemp)
    install() {
        $become env DEBIAN_FRONTEND=noninteractive sh -c "apt-get update && apt-get install -y --no-install-recommends $missing" >"$log" 2>&1
    }
    # A mirror that was being renewed gives other files than its list said; the second list is right.
    if install || install; then missing=; else tail -n 5 "$log" >&2; fi
    rm -f "$log"
fi
# A package from the index that has to be compiled comes only where the compiler does.
packages=peers
[ -n "$missing" ] || packages=peers,compiled
stamp=$("$PYTHON" -c 'import sys; print(sys.prefix)')/.peers
if [ ! -e "$stamp" ] || [ pyproject.toml -nt "$stamp" ] || [ "$(cat "$stamp")" != "$packages" ]; then
    if "$PYTHON" -m pip install --quiet --disable-pip-version-check -e ".[$packages]"; then echo "$packages" >"$stamp"; else missing="$missing Python-packages"; fi
fi
if [ -n "$missing" ] && [ "${PEERS:-}" = yes ]; then
    echo "bring_peers.sh: not installed:$missing" >&2
    exit 1
fi
