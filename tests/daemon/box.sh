#!/bin/bash
# box.sh COMMAND [ARG...]: boot this machine's own systemd as process 1 of a throw-away world, run COMMAND in it,
# exit with its status.  The world sees the root file system through an overlay, so nothing outside is written; /run,
# /tmp, /dev, process ids, host name, network (loopback only) and cgroups are its own.  Needs root, overlayfs, cgroup v2.
# BOX_SHOW="DIR..." shows folders of /tmp inside, read-only.
set -eu
SELF=$(readlink -f "$0")
BOOT_STEPS=600 # of 50 ms

outside() {
    world=$(mktemp -d /tmp/hexz-box.XXXXXX)
    export BOX_WORLD=$world
    BOX_STEP=group unshare --mount --propagation private bash "$SELF" </dev/null &
    keeper=$!
    trap 'clean_up' EXIT
    init=
    for ((step = 0; step < BOOT_STEPS; step++)); do
        init=$(tr -d ' ' <"/proc/$keeper/task/$keeper/children" 2>/dev/null) || init=
        [ -n "$init" ] && inside test -S /run/systemd/private 2>/dev/null && break
        kill -0 "$keeper" 2>/dev/null || { echo "box: systemd did not boot" >&2; exit 70; }
        sleep 0.05
        init=
    done
    [ -n "$init" ] || { echo "box: systemd did not boot in time" >&2; exit 70; }
    inside systemctl is-system-running --wait >/dev/null || true
    status=0
    inside "$@" || status=$?
    exit $status
}

inside() { nsenter -t "$init" -a --wdns=/ "$@"; }

clean_up() {
    kill -9 "$keeper" 2>/dev/null || true
    wait "$keeper" 2>/dev/null || true
    unshare --mount --propagation private bash -c '
        mkdir -p "$0/group" && mount -t cgroup2 none "$0/group"
        for try in 1 2 3 4 5 6; do
            find "$0/group/${0##*/}" -depth -type d -exec rmdir {} + 2>/dev/null && break
            sleep 0.1
        done' "$world" || true
    rm -rf --one-file-system "$world"
}

# A cgroup of its own first: the cgroup namespace made next has it as its root.
group() {
    mkdir -p "$BOX_WORLD/group"
    mount -t cgroup2 none "$BOX_WORLD/group"
    mkdir "$BOX_WORLD/group/${BOX_WORLD##*/}"
    echo $$ >"$BOX_WORLD/group/${BOX_WORLD##*/}/cgroup.procs"
    umount "$BOX_WORLD/group"
    BOX_STEP=world exec unshare --mount --propagation private --uts --ipc --net --cgroup --pid --fork --kill-child \
        bash "$SELF"
}

world() {
    ip link set lo up 2>/dev/null || true
    base=$BOX_WORLD/base
    root=$base/root
    mkdir "$base"
    mount -t tmpfs -o size=1g,mode=755 tmpfs "$base"
    mkdir "$base/upper" "$base/work" "$root"
    mount -t overlay -o "lowerdir=/,upperdir=$base/upper,workdir=$base/work" overlay "$root"
    mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
    mount --bind "$root/proc/sys" "$root/proc/sys" # else the box would set the host's kernel parameters
    mount -o remount,bind,ro "$root/proc/sys"
    mount -t sysfs -o nosuid,nodev,noexec,ro sysfs "$root/sys"
    mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$root/sys/fs/cgroup"
    devices
    mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/run"
    mkdir -p "$base/show"
    for folder in ${BOX_SHOW:-}; do
        mkdir -p "$base/show$folder"
        mount --bind "$folder" "$base/show$folder"
    done
    mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/tmp"
    for folder in ${BOX_SHOW:-}; do
        mkdir -p "$root$folder"
        mount --move "$base/show$folder" "$root$folder"
    done
    unit
    cd "$root"
    mkdir -p mnt/old
    pivot_root . mnt/old
    umount -l /mnt/old
    mount --make-rshared / # else credential folders stay empty
    exec env -i container=box PATH=/usr/sbin:/usr/bin:/sbin:/bin /lib/systemd/systemd --unit=box.target \
        --log-target=journal --show-status=no </dev/null >/dev/null 2>&1
}

devices() {
    mount -t tmpfs -o mode=755 tmpfs "$root/dev"
    for device in null zero full random urandom tty fuse; do
        [ -e "/dev/$device" ] || continue
        : >"$root/dev/$device"
        mount --bind "/dev/$device" "$root/dev/$device"
    done
    mkdir "$root/dev/pts" "$root/dev/shm"
    mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts "$root/dev/pts"
    ln -s pts/ptmx "$root/dev/ptmx"
    ln -s /proc/self/fd "$root/dev/fd"
    mount -t tmpfs -o mode=1777,nosuid,nodev tmpfs "$root/dev/shm"
}

unit() {
    mkdir -p "$root/run/systemd/system"
    printf '[Unit]\nRequires=basic.target\nAfter=basic.target\nAllowIsolate=yes\n' >"$root/run/systemd/system/box.target"
    : >"$root/etc/fstab"
    printf 'box\n' >"$root/etc/hostname"
}

case ${BOX_STEP:-outside} in
outside) outside "$@" ;;
group) group ;;
world) world ;;
esac
