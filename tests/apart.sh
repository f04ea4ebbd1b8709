#!/bin/sh
# python in namespaces of its own, where it finds a host that is only its own: no libvirtd runs
# yet, no machine is defined, every port is free. So several workers of one test run, each with
# real machines, can't meet. What it starts ends with it, and it ends with its parent.
#
# usage: apart.sh PYTHON-ARGUMENTS; $DRVM_TEST_APART is a directory for this, $DRVM_TEST_PYTHON
# the interpreter. Needs root, and a kernel that lets it have namespaces.
set -eu
root=$(mktemp -d "$DRVM_TEST_APART/XXXXXX")
export root

# shellcheck disable=SC2016 # for the inner shell, which stays process 1 there and reaps orphans
exec unshare --mount --net --pid --fork --kill-child sh -c '
set -eu
mount --make-rprivate /
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir -m 1777 /run/lock
for place in etc/libvirt var/lib/libvirt var/log/libvirt var/cache/libvirt var/lib/swtpm-localca; do
    [ -d "/$place" ] || continue
    mkdir -p "$root/${place%/*}"
    case $place in
    var/lib/libvirt) mkdir -m 755 "$root/$place" "$root/$place/images" ;;
    *) cp -a "/$place" "$root/$place" ;;
    esac
done
rm -rf "$root"/etc/libvirt/qemu "$root"/etc/libvirt/storage "$root"/var/log/libvirt/qemu
for place in etc/libvirt var/lib/libvirt var/log/libvirt var/cache/libvirt var/lib/swtpm-localca; do
    [ ! -d "$root/$place" ] || mount --bind "$root/$place" "/$place"
done
ip link set lo up
set +e
"$DRVM_TEST_PYTHON" "$@"
exit $?
' sh "$@"
