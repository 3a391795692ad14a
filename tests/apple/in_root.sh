#!/usr/bin/env bash
# Runs a command in the Debian root of make_root.sh, in this folder: in_root.sh COMMAND [ARGUMENT...]
#
# The repository, the virtual environment's Python, the folders for temporary files and caches appear inside under their
# own paths, so the virtual environment works there unchanged. All mounts are in a namespace that ends with the command.
set -euo pipefail

repository=$(realpath "$(dirname "$0")/../..")
root=$("$repository/tests/apple/make_root.sh")
python=$repository/.venv/bin/python
cache=${MPS_FLASH_ATTN_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/mps-flash-attn}
mkdir -p "$cache"
exec 9<"$(dirname "$root")/root.lock"
flock --shared 9 # for as long as the command runs, nobody removes the root

shared=("$repository" "$(realpath "$cache")" "$(realpath "${TMPDIR:-/tmp}")" /dev)
if [[ -x $python ]]; then
    read -r prefix version < <("$python" -c 'import sys; print(sys.base_prefix, "python%d.%d" % sys.version_info[:2])')
    if [[ $prefix == /usr ]]; then
        shared+=(/usr/bin/python3 "/usr/bin/$version" "/usr/lib/$version")
        shared+=("/usr/include/$version" "/usr/include/$(uname -m)-linux-gnu/$version")
    else
        shared+=("$prefix")
    fi
fi

# shellcheck disable=SC2016  # expanded by the inner shell
exec unshare --mount --propagation private -- bash -c '
    set -euo pipefail
    root=$1 folder=$2 count=$3
    shift 3
    mount -t proc proc "$root/proc"
    for path in "${@:1:count}"; do
        [[ -e $path ]] || continue
        if [[ -d $path ]]; then
            mkdir -p "$root$path"
        else
            mkdir -p "$(dirname "$root$path")"
            touch "$root$path"
        fi
        mount --rbind "$path" "$root$path"
    done
    shift "$count"
    exec chroot "$root" env -C "$folder" PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin LC_ALL=C.UTF-8 "$@"
' in_root "$root" "$PWD" "${#shared[@]}" "${shared[@]}" "$@"
