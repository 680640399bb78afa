#!/bin/sh
# Fill FOLDER with what the tests of remote devices need: an ssh server, adb, qemu, the shell and the
# tools that Android has (mksh, toybox), and a folder tree that is a phone to adb (Android's own adbd,
# as Debian 13 builds it, and an aarch64 userland).
# Packages are downloaded and unpacked, not installed: nothing outside FOLDER changes. The host is
# Debian 12 on x86-64.
#
#   tests/devices/tools.sh FOLDER
set -eu
sources=/etc/apt/sources.list.d/debian.sources
[ -r "$sources" ] || {
    echo "error: tests of devices need Debian 12 (there is no $sources)" >&2
    exit 1
}
mkdir -p "$1"
cd "$1"
[ -e done ] && exit 0
rm -rf host phone work
mkdir -p work/lists/partial work/cache/archives/partial work/parts work/host work/phone work/arm

(
    cd work/host
    apt-get -qq download adb android-libbase android-libboringssl android-libcutils android-liblog \
        libusb-1.0-0 qemu-user-static openssh-server libwrap0 mksh toybox
)

base=$(awk '/^URIs:/ { print $2; exit }' "$sources")
key=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [arch=amd64,arm64 signed-by=$key] $base trixie main" >work/sources.list
work=$PWD/work
apt() {
    apt-get -qq -o Dir::Etc::sourcelist="$work/sources.list" -o Dir::Etc::sourceparts="$work/parts" \
        -o Dir::State::lists="$work/lists" -o Dir::Cache="$work/cache" \
        -o APT::Architectures::=amd64 -o APT::Architectures::=arm64 "$@"
}
apt update
(
    cd work/phone
    apt download adbd:amd64 android-libbase:amd64 android-libboringssl:amd64 \
        android-libcutils:amd64 android-liblog:amd64 libbrotli1:amd64 libc6:amd64 libgcc-s1:amd64 \
        liblz4-1:amd64 libprotobuf32t64:amd64 libstdc++6:amd64 libsystemd0:amd64 libzstd1:amd64 \
        libxxhash0:amd64 libcap2:amd64 zlib1g:amd64
)
(cd work/arm && apt download busybox-static:arm64)

for package in work/host/*.deb; do dpkg -x "$package" host; done
for package in work/phone/*.deb; do dpkg -x "$package" work/adbd; done
for package in work/arm/*.deb; do dpkg -x "$package" work/busybox; done

find host/usr/bin -name "qemu-*" ! -name qemu-aarch64-static ! -name qemu-x86_64-static -delete

# The phone: /adb has adbd and its libraries (x86-64), all other programs are aarch64.
mkdir -p phone/adb/lib phone/system/bin phone/data/local/tmp phone/proc phone/dev phone/sys phone/tmp
cp -L work/adbd/usr/lib/x86_64-linux-gnu/*.so* work/adbd/usr/lib/x86_64-linux-gnu/android/*.so* \
    phone/adb/lib
cp -L "$(find work/adbd -name adbd -type f -perm -u+x | head -n 1)" phone/adb/adbd
cp work/busybox/usr/bin/busybox phone/system/bin/busybox
for name in $("host/usr/bin/qemu-aarch64-static" phone/system/bin/busybox --list); do
    [ "$name" = busybox ] || ln -sf busybox "phone/system/bin/$name"
done
ln -s system/bin phone/bin
cat >phone/system/bin/getprop <<'PROPERTIES'
#!/bin/sh
case $1 in
ro.product.manufacturer) echo edgepack;;
ro.product.model) echo sandbox;;
ro.build.version.release) echo 14;;
ro.build.version.sdk) echo 34;;
ro.product.cpu.abi) echo arm64-v8a;;
esac
PROPERTIES
chmod 755 phone/system/bin/getprop
rm -rf work
touch done
