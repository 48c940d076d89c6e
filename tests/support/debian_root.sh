#!/bin/sh
# debian_root.sh ROOTFS: a Debian that can boot its own systemd, for systemd_container.sh. Needs root, debootstrap and a
# package source; takes about 45 s and 300 MB.
set -eu
exec debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,python3,iproute2 bookworm "$1"
