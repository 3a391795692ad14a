#!/usr/bin/env bash
# Makes the Debian trixie root in which Apple's side is built and run against stand-ins, unless it is there already, and
# prints its path. Debian 12's own glibc is too old for Swift.
#
# The root lies in ${XDG_CACHE_HOME:-~/.cache}/mps-flash-attn and is keyed by its packages: another list makes another
# root and removes this one. It appears under its name only when it is whole, so an interrupted run leaves nothing that
# counts. Making it takes about two minutes, 700 MB of download and 3.5 GB of disk.
set -euo pipefail

readonly SUITE=trixie
readonly MIRROR=${DEBIAN_MIRROR:-http://deb.debian.org/debian}
readonly PACKAGES=(
    swiftlang libc6-dev libstdc++-14-dev binutils # the Swift compiler and what it links with
    clang-19 gobjc++ libgnustep-base-dev          # Objective-C++
    g++ python3 ca-certificates                   # the simulator's compiler; the libraries that any Python needs
)
readonly CACHE=${XDG_CACHE_HOME:-$HOME/.cache}/mps-flash-attn

fail() {
    echo "make_root.sh: $*" >&2
    exit 1
}

key=$(printf '%s\n' "$SUITE" "${PACKAGES[@]}" | sha256sum | cut -c1-12)
root=$CACHE/root-$key
if [[ -d $root ]]; then
    echo "$root"
    exit
fi

[[ $(uname -s) == Linux ]] || fail 'the root is made on Linux only; on a Mac build swift/ itself'
[[ $(id -u) == 0 ]] || fail 'only root can make and enter a Debian root: run as root, for example sudo make check-apple'
for command in apt-get dpkg flock unshare; do
    command -v $command >/dev/null || fail "$command is needed: run on Debian or Ubuntu"
done

mkdir -p "$CACHE"
exec 9>"$CACHE/root.lock"
# Another run may be making it, or working in the one before.
flock --nonblock 9 || {
    echo 'make_root.sh: waiting for another run' >&2
    flock 9
}
if [[ -d $root ]]; then
    echo "$root"
    exit
fi
work=$CACHE/root-making
rm -rf --one-file-system "$work"
mkdir "$work"
trap 'rm -rf --one-file-system "$work"' EXIT

if ! command -v mmdebstrap >/dev/null; then
    # Two scripts, the second called by the first: unpacked beside the root instead of installed.
    (cd "$work" && { apt-get -qq download mmdebstrap || { apt-get -qq update && apt-get -qq download mmdebstrap; }; }) ||
        fail 'mmdebstrap cannot be downloaded: check the network, or apt-get install mmdebstrap'
    dpkg -x "$work"/mmdebstrap_*.deb "$work/tools"
    PATH=$work/tools/usr/bin:$PATH
fi

echo "make_root.sh: making a Debian $SUITE root with ${PACKAGES[*]}" >&2
packages=$(IFS=,; echo "${PACKAGES[*]}")
# In a mount namespace of its own, so that no mount outlives an interruption.
unshare --mount -- mmdebstrap --variant=apt --quiet --include="$packages" \
    --aptopt='Acquire::Retries "3"' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/man/*' \
    "$SUITE" "$work/root" "$MIRROR" </dev/null >&2 ||
    fail "mmdebstrap failed, see above; it downloads from $MIRROR (DEBIAN_MIRROR names another)"
rm -rf "$work"/root/var/cache/apt/archives/*.deb
rm -rf --one-file-system "$CACHE"/root-[0-9a-f]*
mv -T "$work/root" "$root"
echo "$root"
