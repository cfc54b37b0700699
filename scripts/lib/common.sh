# SPDX-License-Identifier: GPL-2.0-or-later
# shellcheck shell=bash
#
# Functions that the shell scripts share: messages, long steps, and the build tools.

PROJECT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
SELF=$(basename "$0")
readonly PROJECT SELF

say() {
    printf '%s: %s\n' "$SELF" "$*"
}

die() {
    printf '%s: error: %s\n' "$SELF" "$*" >&2
    exit 1
}

# Print the comment block at the top of the script that was called.
show_help() {
    awk '/^#!|SPDX/ { next } !/^#/ { exit } { sub(/^# ?/, ""); print }' "$0"
}

need() {
    local tool
    for tool in "$@"; do
        command -v "$tool" >/dev/null ||
            die "$tool is not installed: run scripts/install-deps"
    done
}

project_version() {
    sed -n "s/^ *version: '\(.*\)',$/\1/p" "$PROJECT/meson.build"
}

# The recent line of a log that best says how far a build is.
log_position() {
    tail -n 1 "$1" 2>/dev/null | tr -d '\r' | cut -c 1-70
}

# Show the progress of a long step: in place on a terminal, otherwise a line now and then.
watch_log() {
    local log=$1 start=$SECONDS
    while sleep 5; do
        if [ -t 1 ]; then
            printf '\r\033[K  %3d s  %s' $((SECONDS - start)) "$(log_position "$log")"
        elif (((SECONDS - start) % 30 < 5)); then
            printf '  %3d s  %s\n' $((SECONDS - start)) "$(log_position "$log")"
        fi
    done
}

# long_step TITLE LOG COMMAND...: run a command in its own shell, with its output in LOG,
# and show progress; if it fails, show its last output. A function ends at its first error
# there; without that shell, bash would go on, as we look at the status.
long_step() {
    local title=$1 log=$2 watcher status start=$SECONDS
    shift 2
    mkdir -p "$(dirname "$log")"
    : >"$log"
    say "$title"
    watch_log "$log" &
    watcher=$!
    set +e
    (set -e; "$@") >>"$log" 2>&1 </dev/null
    status=$?
    set -e
    kill "$watcher" 2>/dev/null || true
    wait "$watcher" 2>/dev/null || true
    [ ! -t 1 ] || printf '\r\033[K'
    if ((status)); then
        grep -nE 'error|Error|ERROR|FAILED' "$log" | tail -n 15 >&2 || true
        tail -n 15 "$log" >&2
        die "$title: failed, all of its output is in $log"
    fi
    say "$title: done in $((SECONDS - start)) s"
}

# Use ccache. Paths below the project are cached relative to it, so a clone in another
# folder finds what an earlier one has compiled.
use_ccache() {
    export CCACHE_BASEDIR=$PROJECT CCACHE_NOHASHDIR=1
    if command -v ccache >/dev/null; then
        HOST_CC="ccache gcc"
    else
        HOST_CC=gcc
    fi
    export HOST_CC
}

# build_everything BUILD [TARGET...]: configure if that hasn't been done, and compile all,
# or the targets.
build_everything() {
    need meson ninja
    if [ ! -f "$1/build.ninja" ]; then
        say "configuring in $1"
        mkdir -p "$1/logs"
        meson setup "$1" "$PROJECT" >"$1/logs/setup.log" 2>&1 || {
            cat "$1/logs/setup.log" >&2
            die "meson setup failed"
        }
    fi
    say "building in $1 (the first time takes some minutes)"
    ninja --quiet -C "$@" || die "the build failed, its logs are in $1/logs"
}

# --- common parts of building QEMU and building Linux ---

# [--src DIR] [--stamp FILE] BUILD
parse_arguments() {
    local usage
    usage=$(show_help | grep '^usage:')
    USER_SOURCE='' STAMP=''
    while (($#)); do
        case $1 in
        -h | --help) show_help; exit ;;
        --src)
            [ -d "${2:?$usage}" ] || die "there is no directory $2 to take the source from"
            USER_SOURCE=$(realpath "$2")
            shift 2
            ;;
        --stamp) STAMP=$(realpath -m "${2:?$usage}"); shift 2 ;;
        -*) die "unknown option $1; $usage" ;;
        *) break ;;
        esac
    done
    (($# == 1)) || die "$usage"
    mkdir -p "$1"
    BUILD=$(realpath "$1")
    readonly BUILD USER_SOURCE STAMP
}

# recorded NAME FIELD: version (2) or file (3) of a source that fetch-sources
# has recorded; fails if there is no such source.
recorded() {
    awk -F '\t' -v name="$1" -v field="$2" \
        '$1 ~ "^" name { print $field; found = 1 } END { exit !found }' "$VERSIONS"
}

# find_source NAME: set the paths of a source, of its build, and of the record of versions.
find_source() {
    SOURCE=$BUILD/src/$1 OUT=$BUILD/$1 VERSIONS=$BUILD/versions.$1
}

# prepare_source NAME TITLE: bring BUILD/src/NAME up to date.
prepare_source() {
    find_source "$1"
    mkdir -p "$BUILD/src"
    if [ -n "$USER_SOURCE" ]; then
        copy_user_source "$1"
    else
        unpack_debian_source "$1" "$2"
        "$PROJECT/scripts/overlay" install "$SOURCE"
    fi
}

# Building leaves files in a tree, so the user's own tree is copied.
copy_user_source() {
    need rsync
    # The meson that building QEMU may need is the only thing to fetch.
    : >"$VERSIONS"
    [ "$1" != qemu ] || "$PROJECT/scripts/fetch-sources" --record "$VERSIONS" meson
    echo "$USER_SOURCE" | cmp -s - "$SOURCE.origin" || rm -rf "$SOURCE" "$OUT"
    "$PROJECT/scripts/overlay" install --copy-of "$USER_SOURCE" "$SOURCE"
    echo "$USER_SOURCE" >"$SOURCE.origin"
}

# unpack_debian_source NAME TITLE: unpack only if the version has changed.
unpack_debian_source() {
    local version file
    "$PROJECT/scripts/fetch-sources" --record "$VERSIONS" "$1"
    version=$(recorded "${1%%-*}" 2) file=$(recorded "${1%%-*}" 3)
    echo "$1 $version" | cmp -s - "$SOURCE.origin" && return
    rm -rf "$SOURCE" "$SOURCE.new" "$OUT"
    long_step "unpacking $2 $version" "$BUILD/logs/$1-unpack.log" "unpack_${1%%-*}" "$file"
    mv "$SOURCE.new" "$SOURCE"
    echo "$1 $version" >"$SOURCE.origin"
}

# Debian's patches are needed, as its repackaging has removed parts of the source. apt has
# checked the signature.
unpack_qemu() {
    need dpkg-source
    dpkg-source --no-check -x "$1" "$SOURCE.new"
}

unpack_linux() {
    local package=$BUILD/src/linux-source tar=$1
    rm -rf "$package"
    if [[ $1 == *.deb ]]; then
        dpkg-deb -x "$1" "$package"
        tar=$(echo "$package"/usr/src/linux-source-*.tar.xz)
    fi
    mkdir "$SOURCE.new"
    tar -xf "$tar" -C "$SOURCE.new" --strip-components=1
    rm -rf "$package"
}

# finish PATH...: write the stamp, and have ninja run the script again when any file below
# the paths changes, appears or goes away.
finish() {
    [ -n "$STAMP" ] || return 0
    {
        printf '%s:' "${STAMP##*/}"
        find "$@" "$PROJECT"/scripts/{lib,overlay,"$SELF"} \
            -name __pycache__ -prune -o \( -type f -o -type d \) -print |
            sed 's/[ #$\\]/\\&/g; s/^/ /' | tr -d '\n'
        echo
    } >"$STAMP.d"
    touch "$STAMP"
}
