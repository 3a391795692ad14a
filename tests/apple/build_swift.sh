#!/usr/bin/env bash
# Builds the stand-in for Metal, and swift/ unmodified against it: in_root.sh tests/apple/build_swift.sh [test]
#
# Both libraries come to lie in build/apple/lib, beside MetalRuntime.h, the C declarations that Swift's compiler wrote
# for its exports. Each appears there whole, by renaming, so that neither an interruption nor another run spoils what
# processes load. With the argument `test`, both packages' style is checked and their tests run as well.
set -euo pipefail

repository=$(realpath "$(dirname "$0")/../..")
out=$repository/build/apple
metal=$repository/tests/apple/metal
lib=$out/lib
mkdir -p "$lib"

install_file() {
    local name=${1##*/}
    cmp --silent "$1" "$lib/$name" && return
    local fresh
    fresh=$(mktemp "$lib/.$name.XXXXXX")
    # shellcheck disable=SC2064  # the name as it is now
    trap "rm -f '$fresh'" EXIT
    cp "$1" "$fresh"
    chmod 755 "$fresh"
    mv -T "$fresh" "$lib/$name"
}

swift build --configuration release --package-path "$metal" --scratch-path "$out/metal"
install_file "$out/metal/release/libMetal.so"

runtime=(
    --package-path "$repository/swift" --scratch-path "$out/runtime"
    -Xswiftc -I"$out/metal/release/Modules" -Xswiftc -I"$metal/Sources/CStandin"
    -Xlinker -L"$lib" -Xlinker -lMetal -Xlinker -rpath -Xlinker "$lib"
)
swift build --configuration release --product MetalRuntime "${runtime[@]}" \
    -Xswiftc -emit-clang-header-path -Xswiftc "$out/MetalRuntime.h"
install_file "$out/runtime/release/libMetalRuntime.so"
install_file "$out/MetalRuntime.h"
if [[ ${1:-} == test ]]; then
    "$(dirname "$(realpath "$(command -v swift)")")/swift-format" lint --strict --recursive "$repository/swift" "$metal"
    swift test --package-path "$metal" --scratch-path "$out/metal"
    swift test "${runtime[@]}"
fi
