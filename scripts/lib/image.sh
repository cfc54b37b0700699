# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# Functions for scripts that make guests' images: they print parts of the list of contents
# that the kernel's gen_init_cpio reads. Needs common.sh.

# A dynamically linked program in /bin, and its libraries at their own paths, with the
# directories above them.
dynamic_program() {
    local library libraries directory
    libraries=$(ldd "$1" | grep -oE '/[^ ]+')
    directory=$(for library in $libraries; do dirname "$library"; done | sort -u)
    for directory in $directory; do
        while [ "$directory" != / ]; do
            echo "$directory"
            directory=$(dirname "$directory")
        done
    done | sort -u | sed 's|.*|dir & 755 0 0|'
    for library in $libraries; do
        echo "file $library $(realpath "$library") 755 0 0"
    done
    echo "file /bin/$(basename "$1") $(realpath "$1") 755 0 0"
}

# make_cpio CONTENTS IMAGE: the same contents give the same bytes.
make_cpio() {
    "$BUILD/linux/usr/gen_init_cpio" -t 0 "$1" >"$2"
}
