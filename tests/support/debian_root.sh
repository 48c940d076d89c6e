#!/bin/sh
# box_root.sh ROOTFS: a Debian that can boot its own systemd, for systemd_box.sh. Needs root, debootstrap and a package
# source; three quarters of a minute, 300 MB.
set -eu
exec debootstrap --variant=minbase --include=systemd,systemd-sysv,dbus,python3,iproute2 bookworm "$1"
