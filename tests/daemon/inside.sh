#!/bin/bash
# inside.sh SCENARIO CHECKOUT SNAPSHOT RAW: run in the box; prints what it sees, fails on the first surprise.
set -euo pipefail
scenario=$1 checkout=$2 snapshot=$3 raw=$4

put_in_place() {
    make -s -C "$checkout" install PREFIX=/usr SYSTEM_PYTHON=/usr/bin/python3
    mkdir -p /var/lib/hexz-serve /etc/hexz-serve
    cp "$snapshot" /var/lib/hexz-serve/snap.hxz
    chmod 644 /var/lib/hexz-serve/snap.hxz
    printf 'HEXZ_OPTIONS=--http --nbd --drain-timeout 20\n' >/etc/hexz-serve/snap.conf
    systemctl daemon-reload
}

say() { systemctl show -P "$1" "$2"; }
journal() { journalctl --sync; journalctl --no-pager -o cat -t "hexz-serve@$1"; }
explain() {
    status=$?
    [ $status = 0 ] || { systemctl status --no-pager -l 'hexz-serve*' || true; journalctl --no-pager -n 60 -o cat || true; }
    exit $status
}
trap explain EXIT

starts() {
    systemctl start hexz-serve@snap
    [ "$(say ActiveState hexz-serve@snap)" = active ]
    curl -sf http://127.0.0.1:8080/disk | cmp - "$raw"
    nbdinfo --size nbd://127.0.0.1/snap
    say StatusText hexz-serve@snap | grep 'serving snap at http://127.0.0.1:8080/, nbd://127.0.0.1:10809/'
    [ "$(stat -c %u "/proc/$(say MainPID hexz-serve@snap)")" != 0 ]
    systemctl stop hexz-serve@snap
    [ "$(say Result hexz-serve@snap)" = success ]
    journal snap | grep stopping
}

# loaded ADDRESS COMMAND: run it while clients come and go; not one of them may be refused or cut off.
loaded() {
    folder=$(mktemp -d)
    python3 "$checkout/tests/daemon/load.py" "$1" "$folder" "$raw" &
    load=$!
    until [ -e "$folder/begun" ]; do sleep 0.05; done
    shift
    "$@"
    touch "$folder/enough"
    wait $load
}

restarts_under_load() {
    systemctl start hexz-serve@snap
    three_restarts() { for i in 1 2 3; do systemctl restart hexz-serve@snap; done; }
    loaded 127.0.0.1:8080 three_restarts
    systemctl kill -s KILL hexz-serve@snap
    # Refused is nobody, while the manager holds the socket and starts it again.
    curl -sSf http://127.0.0.1:8080/healthz
    [ "$(say NRestarts hexz-serve@snap)" = 1 ]
    [ "$(say NFileDescriptorStore hexz-serve@snap)" -ge 1 ]
}

drains() {
    systemctl start hexz-serve@snap
    folder=$(mktemp -d)
    python3 "$checkout/tests/daemon/slow.py" "$folder" "$raw" &
    download=$!
    until [ -e "$folder/begun" ]; do sleep 0.05; done
    systemctl stop hexz-serve@snap &
    stop=$!
    until journal snap | grep 'stopping: 1 connections'; do sleep 0.05; done
    kill -0 $stop
    touch "$folder/enough"
    wait $download
    wait $stop
    [ "$(say Result hexz-serve@snap)" = success ]
}

fails_readably() {
    ! systemctl start hexz-serve@nothing
    say StatusText hexz-serve@nothing | grep '/var/lib/hexz-serve/nothing.hxz: no such file'
    [ "$(say ExecMainStatus hexz-serve@nothing)" = 66 ]
    [ "$(say NRestarts hexz-serve@nothing)" = 0 ]
    journal nothing | grep 'no such file'
    cp "$snapshot" /home/hidden.hxz
    echo 'HEXZ_SNAPSHOT=/home/hidden.hxz' >/etc/hexz-serve/hidden.conf
    ! systemctl start hexz-serve@hidden
    say StatusText hexz-serve@hidden | grep '/home/hidden.hxz: permission denied (ProtectHome= of the unit hides /home: '
    cp "$snapshot" /var/lib/hexz-serve/open.hxz
    echo 'HEXZ_OPTIONS=--bind 0.0.0.0' >/etc/hexz-serve/open.conf
    ! systemctl start hexz-serve@open
    say StatusText hexz-serve@open | grep 'put it in /etc/credstore/hexz-serve.open.tokens'
}

activates() {
    systemctl start hexz-serve-http@snap.socket hexz-serve-nbd@snap.socket
    [ "$(say ActiveState hexz-serve-activated@snap)" = inactive ]
    curl -sf --unix-socket /run/hexz-serve-snap.http.sock http://localhost/disk | cmp - "$raw"
    nbdinfo --size 'nbd+unix:///snap?socket=/run/hexz-serve-snap.nbd.sock'
    [ "$(say ActiveState hexz-serve-activated@snap)" = active ]
    loaded /run/hexz-serve-snap.http.sock systemctl restart hexz-serve-activated@snap
    systemctl stop hexz-serve-activated@snap
    curl -sSf --unix-socket /run/hexz-serve-snap.http.sock http://localhost/healthz
}

lets_no_client_wait_for_a_damaged_file() {
    head -c 9000 /dev/zero >/var/lib/hexz-serve/snap.hxz
    systemctl start hexz-serve-http@snap.socket
    status=0
    curl -sS --max-time 60 --unix-socket /run/hexz-serve-snap.http.sock http://localhost/disk || status=$?
    [ $status != 0 ] && [ $status != 28 ] # hung up on, and not after a minute
    until [ "$(say ActiveState hexz-serve-http@snap.socket)" = failed ]; do sleep 0.05; done
    say StatusText hexz-serve-activated@snap | grep 'the header is all zeros'
    [ "$(say ExecMainStatus hexz-serve-activated@snap)" = 65 ]
    cp "$snapshot" /var/lib/hexz-serve/snap.hxz
    systemctl reset-failed 'hexz-serve*@snap.*'
    systemctl start hexz-serve-http@snap.socket
    curl -sSf --unix-socket /run/hexz-serve-snap.http.sock http://localhost/disk | cmp - "$raw"
}

reloads() {
    systemctl start hexz-serve@snap
    before=$(curl -sfI http://127.0.0.1:8080/disk | grep -i etag)
    cp /var/lib/hexz-serve/snap.hxz /var/lib/hexz-serve/new
    touch -d '2020-01-01' /var/lib/hexz-serve/new
    mv /var/lib/hexz-serve/new /var/lib/hexz-serve/snap.hxz
    systemctl reload hexz-serve@snap
    for i in $(seq 600); do
        after=$(curl -sfI http://127.0.0.1:8080/disk | grep -i etag)
        [ "$after" = "$before" ] || break
        sleep 0.05
    done
    [ "$after" != "$before" ]
    curl -sf http://127.0.0.1:8080/disk | cmp - "$raw"
    systemctl kill -s USR1 hexz-serve@snap
    for i in $(seq 600); do journal snap | grep 'status: serving' && break; sleep 0.05; done
    [ "$(say ActiveState hexz-serve@snap)" = active ]
}

is_watched() {
    mkdir -p /run/systemd/system/hexz-serve@snap.service.d
    printf '[Service]\nWatchdogSec=4\n' >/run/systemd/system/hexz-serve@snap.service.d/watchdog.conf
    systemctl daemon-reload
    systemctl start hexz-serve@snap
    for sign in 1 2; do
        before=$(say WatchdogTimestampMonotonic hexz-serve@snap)
        for i in $(seq 600); do [ "$(say WatchdogTimestampMonotonic hexz-serve@snap)" = "$before" ] || break; sleep 0.05; done
        [ "$(say WatchdogTimestampMonotonic hexz-serve@snap)" != "$before" ]
    done
    [ "$(say NRestarts hexz-serve@snap)" = 0 ]
    systemctl kill -s STOP hexz-serve@snap
    for i in $(seq 600); do [ "$(say NRestarts hexz-serve@snap)" = 0 ] || break; sleep 0.05; done
    [ "$(say NRestarts hexz-serve@snap)" = 1 ]
    curl -sSf http://127.0.0.1:8080/healthz
}

serves_a_user() {
    useradd --create-home --uid 4711 visitor
    folder=/home/visitor/.local/share/hexz-serve
    settings=/home/visitor/.config/hexz-serve
    address=/run/user/4711/hexz-serve/snap/http
    install -d -o visitor -g visitor /home/visitor/.config $settings /home/visitor/.local /home/visitor/.local/share $folder
    install -o visitor -g visitor -m 600 "$snapshot" $folder/snap.hxz
    printf 'HEXZ_OPTIONS=--http-socket /run/user/4711/hexz-serve/snap/http --nbd-port 10811\n' >$settings/snap.conf
    systemctl start user@4711
    as_visitor() { setpriv --reuid=4711 --regid=4711 --clear-groups env HOME=/home/visitor XDG_RUNTIME_DIR=/run/user/4711 "$@"; }
    as_visitor systemctl --user start hexz-serve@snap
    as_visitor curl -sSf --unix-socket $address http://localhost/disk | cmp - "$raw"
    nbdinfo --size nbd://127.0.0.1:10811/snap
    pid=$(as_visitor systemctl --user show -P MainPID hexz-serve@snap)
    [ "$(stat -c %U "/proc/$pid")" = visitor ]
    loaded $address as_visitor systemctl --user restart hexz-serve@snap
    as_visitor systemctl --user kill -s KILL hexz-serve@snap
    as_visitor curl -sSf --unix-socket $address http://localhost/healthz
    as_visitor systemctl --user reload hexz-serve@snap
    as_visitor systemctl --user stop hexz-serve@snap
    [ "$(as_visitor systemctl --user show -P Result hexz-serve@snap)" = success ]
    [ ! -e $address ]
}

reads_credentials() {
    mkdir -m 700 -p /etc/credstore
    printf 'operator 0123456789abcdef0123\n' >/etc/credstore/hexz-serve.snap.tokens
    systemctl start hexz-serve@snap
    [ "$(curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8080/disk)" = 401 ]
    curl -sf -H 'Authorization: Bearer 0123456789abcdef0123' http://127.0.0.1:8080/disk | cmp - "$raw"
}

reads_from_a_server() {
    mkdir -m 700 -p /etc/credstore
    (
        umask 077
        echo 'reader 0123456789abcdef0123' >/etc/credstore/hexz-serve.snap.s3-keys
        printf '[default]\naws_access_key_id = reader\naws_secret_access_key = 0123456789abcdef0123\n' \
            >/etc/credstore/hexz-serve.far.s3-credentials
    )
    echo 'HEXZ_OPTIONS=--s3' >/etc/hexz-serve/snap.conf
    printf 'HEXZ_SNAPSHOT=%s\nHEXZ_OPTIONS=%s\n' s3://snap/snap.hxz \
        '--http --s3-endpoint http://127.0.0.1:9000 --remote-timeout 2 --disk-cache /var/cache/hexz-serve/far --fill' \
        >/etc/hexz-serve/far.conf
    mkdir -p /run/systemd/system/hexz-serve@far.service.d
    printf '[Service]\nCacheDirectory=hexz-serve/%%i\n' >/run/systemd/system/hexz-serve@far.service.d/cache.conf
    systemctl daemon-reload
    far() { curl -sS "http://127.0.0.1:8080/$1"; }
    systemctl start hexz-serve@snap hexz-serve@far
    far disk | cmp - "$raw"
    journal far | grep 'S3 keys from \[default\] of /run/credentials/'
    until [ "$(far metrics | sed -n 's/^hexz_remote_listed_done_bytes{.*} //p')" = "$(stat -c %s "$snapshot")" ]; do sleep 0.1; done
    # The store is gone: what was there is served on, a restart waits for nobody, and all is well when it is back.
    systemctl stop hexz-serve@snap
    far disk | cmp - "$raw"
    systemctl restart hexz-serve@far
    far readyz | grep '"unreachable": 1'
    systemctl start hexz-serve@snap
    until far readyz | grep '"snapshots": 1'; do sleep 0.1; done
    far disk | cmp - "$raw"
    far metrics | grep '^hexz_remote_fetched_bytes_total{snapshot="snap"} 0$'
}

put_in_place
$scenario
