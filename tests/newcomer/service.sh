#!/bin/bash
# service.sh, in the box: the README's service with a token, read over HTTP and NBD.
set -euxo pipefail
cd "$(dirname "$0")/../.."
head -c 3000000 /dev/urandom >/root/disk.raw
hexz pack /root/disk.raw /root/snap.hxz
install -D -m 644 /root/snap.hxz /var/lib/hexz-serve/snap.hxz
install -d -m 700 /etc/credstore
echo "operator 0123456789abcdef0123456789abcdef" >/etc/credstore/hexz-serve.snap.tokens
systemctl daemon-reload
systemctl enable --now hexz-serve@snap
[ "$(curl -s -o /dev/null -w '%{http_code}' http://127.0.0.1:8080/disk)" = 401 ]
curl -sSf -H "Authorization: Bearer 0123456789abcdef0123456789abcdef" http://127.0.0.1:8080/disk | cmp - /root/disk.raw
! make uninstall
systemctl disable --now hexz-serve@snap
systemctl enable --now hexz-serve-http@snap.socket hexz-serve-nbd@snap.socket
nbdcopy 'nbd+unix:///snap?socket=/run/hexz-serve-snap.nbd.sock' /root/copy.raw
cmp /root/copy.raw /root/disk.raw
systemctl disable --now hexz-serve-http@snap.socket hexz-serve-nbd@snap.socket hexz-serve-activated@snap
