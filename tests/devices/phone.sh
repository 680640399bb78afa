#!/bin/sh
# A phone for tests: adbd, and an adb server that is connected to it, in namespaces of their own.
# Nothing outside changes, and no port of this machine is opened.
#
#   unshare --user --map-root-user --mount --net --pid --fork --kill-child \
#       tests/devices/phone.sh TOOLS STORAGE
#
# TOOLS is what tools.sh made; STORAGE becomes the phone's /data/local/tmp. Prints "ready", and runs
# until it is killed. binfmt_misc is per user namespace (Linux 6.7): aarch64 programs run here alone.
set -eu
tools=$1 storage=$2 phone=$1/phone
ip link set lo up
mount -t binfmt_misc none /proc/sys/fs/binfmt_misc
magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
printf '%s' ":aarch64:M::$magic:$mask:$tools/host/usr/bin/qemu-aarch64-static:FP" \
    >/proc/sys/fs/binfmt_misc/register
mount -t proc proc "$phone/proc"
mount --rbind /dev "$phone/dev"
mount --bind "$storage" "$phone/data/local/tmp"

adb start-server >&2
chroot "$phone" /adb/lib/ld-linux-x86-64.so.2 --library-path /adb/lib /adb/adbd >&2 &
until adb connect 127.0.0.1:5555 | grep -q '^connected' &&
    adb devices | grep -q '^127.0.0.1:5555.device'; do
    sleep 0.1
done
echo ready
exec tail -f /dev/null  # adbd may end, the phone goes on
