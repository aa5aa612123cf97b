#!/usr/bin/env bash
# Runs `cargo test` once on each of several file systems, which holds the spools of the tests. The
# build stays where it is.
#
#   tests/file-systems.sh [-s SIZE] [FILE_SYSTEM...] [-- ARGUMENTS OF CARGO TEST]
#
# FILE_SYSTEM: tmpfs, ext4, xfs or btrfs. Default: all four, in this order.
# -s SIZE:     size of each file system in MiB. Default: 6144. The image is a sparse file below
#              TMPDIR (default: /tmp): it occupies what the tests write.
#
#   tests/file-systems.sh                                    # everything, on all four
#   tests/file-systems.sh xfs btrfs -- --test it faults      # a part, on two
#
# Needs root, loop devices and the mkfs of each file system (Debian: e2fsprogs, xfsprogs,
# btrfs-progs). Prints one line for each file system. The exit code is 1 if the tests failed on one
# or one could not be mounted, 2 for a wrong command line.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

usage() {
    sed -n '2,/^set /{/^set /d; s/^# \{0,1\}//; p}' "${BASH_SOURCE[0]}" >&2
    exit 2
}

size_mib=6144
file_systems=()
while [ $# -gt 0 ]; do
    case "$1" in
    tmpfs | ext4 | xfs | btrfs) file_systems+=("$1") ;;
    -s)
        [[ "${2:-}" =~ ^[1-9][0-9]*$ ]] || usage
        size_mib="$2"
        shift
        ;;
    --)
        shift
        break
        ;;
    *) usage ;;
    esac
    shift
done
[ ${#file_systems[@]} -gt 0 ] || file_systems=(tmpfs ext4 xfs btrfs)

if [ "$(id -u)" -ne 0 ]; then
    echo "file-systems.sh: mounting needs root" >&2
    exit 1
fi

scratch="$(mktemp -d "${TMPDIR:-/tmp}/tidespool-fs.XXXXXX")" || exit 1
# Some tests run as another user.
chmod 755 "$scratch" || exit 1
target="$scratch/mnt"
mkdir "$target" || exit 1
mounted=""

unmount() {
    [ -n "$mounted" ] || return 0
    # A killed test may have left a process: the lazy unmount ends with that process.
    umount "$target" 2>/dev/null || umount --lazy "$target" || return
    mounted=""
}

clean_up() {
    unmount
    rm -rf --one-file-system "$scratch"
}
trap clean_up EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# The loop device of `mount -o loop` is freed when the file system is unmounted.
mount_one() {
    local image="$scratch/image"
    case "$1" in
    tmpfs)
        mount -t tmpfs -o "size=${size_mib}m" tmpfs "$target"
        ;;
    *)
        rm -f "$image" && truncate -s "${size_mib}M" "$image" || return
        case "$1" in
        ext4) mkfs.ext4 -q -F "$image" ;;
        xfs) mkfs.xfs -q -f "$image" ;;
        btrfs) mkfs.btrfs -q -f "$image" ;;
        esac && mount -o loop "$image" "$target"
        ;;
    esac
}

# Builds before any file system is mounted.
cargo test --no-run "$@" || exit 1

failed=0
lines=()
for name in "${file_systems[@]}"; do
    printf '\n==> %s\n' "$name"
    began=$SECONDS
    if ! mount_one "$name"; then
        result="FAILED: it could not be mounted"
        failed=1
    else
        mounted=yes
        # As /tmp: tests create their directories below it.
        chmod 1777 "$target"
        if TMPDIR="$target" cargo test "$@"; then
            result="ok"
        else
            result="FAILED"
            failed=1
        fi
        if ! unmount; then
            result="$result, and it could not be unmounted"
            failed=1
        fi
    fi
    lines+=("$(printf '%-6s %s (%d s)' "$name" "$result" $((SECONDS - began)))")
    [ -z "$mounted" ] || break
done

printf '\n'
printf '%s\n' "${lines[@]}"
exit "$failed"
