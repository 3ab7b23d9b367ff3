#!/bin/bash
# paste.sh CHECKOUT SCRIPT SNAPSHOT RAW [installed], in the box: a machine as the documents suppose it, then SCRIPT in it.
set -euo pipefail
checkout=$1 script=$2 snapshot=$3 raw=$4

ssh-keygen -q -A
install -d -m 700 /root/.ssh
install -d -m 755 /run/sshd
ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519
cp /root/.ssh/id_ed25519.pub /root/.ssh/authorized_keys
printf 'Host host\n HostName 127.0.0.1\n StrictHostKeyChecking no\n LogLevel ERROR\n' >/root/.ssh/config
/usr/sbin/sshd
rm -f /etc/nginx/sites-enabled/*
mkdir /root/checkout # what a clone has; a .venv and earlier results would fill the box
tar -C "$checkout" --exclude='./.?*' --exclude=./build --exclude=__pycache__ -cf - . | tar -C /root/checkout -xf -
cd /root/checkout
[ "${5:-}" != installed ] || make -s install
grep -q "hexz pack disk.raw snap.hxz" "$script" || cp "$snapshot" snap.hxz # pack replaces nothing
cp "$raw" disk.raw
systemctl start user@0
cat >/tmp/pasted.sh <<'PRELUDE'
set -e
curl() { command curl --fail-with-body "$@"; }
PRELUDE
cat "$script" >>/tmp/pasted.sh
exec env -i HOME=/root USER=root LANG=C.UTF-8 XDG_RUNTIME_DIR=/run/user/0 \
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin bash /tmp/pasted.sh
