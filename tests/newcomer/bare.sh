#!/bin/bash
# bare.sh FOLDER WORLD COMMAND [ARG...]: run COMMAND as root in a Debian that has nothing but its base packages.
# FOLDER/base is made by debootstrap when it is not there yet; what COMMAND changes stays in FOLDER/WORLD, so that a
# second call goes on where the first one stopped.  The network, its name service, the certificates that are trusted
# and pip's own settings are this machine's; everything else is the bare root's.  Needs root, overlayfs, debootstrap.
set -eu
SELF=$(readlink -f "$0")
RELEASE=bookworm

outside() {
    folder=$1 world=$2
    shift 2
    mkdir -p "$folder"
    folder=$(readlink -f "$folder")
    if [ ! -e "$folder/base/.made" ]; then
        rm -rf --one-file-system "$folder/base"
        debootstrap --variant=minbase --include=ca-certificates "$RELEASE" "$folder/base" >"$folder/debootstrap.log" 2>&1 ||
            { tail -n 3 "$folder/debootstrap.log" >&2; exit 70; }
        chroot "$folder/base" useradd --create-home --shell /bin/bash newcomer
        printf '#!/bin/sh\nexit 101\n' >"$folder/base/usr/sbin/policy-rc.d" # packages start no services
        chmod 755 "$folder/base/usr/sbin/policy-rc.d"
        touch "$folder/base/.made"
    fi
    mkdir -p "$folder/$world/upper" "$folder/$world/work" "$folder/$world/root"
    export BARE_STEP=inside
    exec unshare --mount --propagation private --uts --ipc --pid --fork --kill-child \
        bash "$SELF" "$folder" "$world" "$@"
}

inside() {
    base=$1/base changes=$1/$2 root=$1/$2/root
    shift 2
    mount -t overlay -o "lowerdir=$base,upperdir=$changes/upper,workdir=$changes/work" overlay "$root"
    mount -t proc -o nosuid,nodev,noexec proc "$root/proc"
    mount -t sysfs -o nosuid,nodev,noexec,ro sysfs "$root/sys"
    mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 "$root/sys/fs/cgroup" || true
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
    mount -t tmpfs -o mode=755,nosuid,nodev tmpfs "$root/run"
    mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
    for file in /etc/resolv.conf /etc/ssl/certs/ca-certificates.crt; do
        touch "$root$file"
        mount --bind "$(readlink -f $file)" "$root$file"
    done
    hostname bare
    cd "$root"
    mkdir -p mnt/old
    pivot_root . mnt/old
    umount -l /mnt/old
    cd /
    settings=(PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TERM=dumb DEBIAN_FRONTEND=noninteractive)
    for name in $(compgen -e); do
        case $name in PIP_CERT | PIP_INDEX_URL | PIP_DEFAULT_TIMEOUT | *_proxy | *_PROXY | BARE_*) settings+=("$name=${!name}") ;; esac
    done
    exec env -i "${settings[@]}" "$@"
}

${BARE_STEP:-outside} "$@"
