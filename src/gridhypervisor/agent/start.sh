# The entry of the bundle: sh start ROLE [--scratch DIR] ARGUMENTS…
#
# Unpacks the world once per node into SCRATCH/ghv-UID/world-DIGEST, verified, and becomes ROLE on the world's own
# Python. It needs a POSIX shell and nothing else: every tool is the bundle's busybox, PATH is not used.
# Exit codes of its own, each with one line on stderr: 64 usage, 73 scratch cannot be written or is full,
# 77 scratch is not ours, 78 the bundle is damaged or incomplete, 126 programs may not be started there.
set -u
umask 077

die() {
    code=$1
    shift
    printf 'start: %s\n' "$*" >&2
    exit "$code"
}

cannot_run() {
    die 126 "programs may not be started in $here (mounted noexec, or another architecture); choose another workdir"
}

# Where we are, without dirname and readlink, and without a process where the path is absolute already.
case $0 in
    */*) here=${0%/*} ;;
    *) here=. ;;
esac
case $here in
    /*) ;;
    *) here=$(cd -- "${here:-/}" && pwd -P) || die 78 "cannot enter the bundle's folder ${here}" ;;
esac
digest=${here##*/}
busybox=$here/busybox

[ $# -gt 0 ] || die 64 "no role; usage: sh start relay|pilot|courier|forkq [--scratch DIR] ARGUMENTS"
role=$1
shift
base=${TMPDIR:-/tmp}

# Take --scratch DIR out of the arguments, wherever it stands, and leave the others as they are.
left=$#
while [ "$left" -gt 0 ]; do
    word=$1
    shift
    left=$((left - 1))
    if [ "$word" = --scratch ] && [ "$left" -gt 0 ]; then
        base=$1
        shift
        left=$((left - 1))
    else
        set -- "$@" "$word"
    fi
done

[ -f "$busybox" ] || die 78 "the bundle $here holds no busybox; upload it again"
[ -d "$base" ] || die 73 "scratch $base is not a folder; configure a scratch that exists on this node"

# Who we are, as the kernel says it: each process that is started here is waited for by every job.
uid=''
if [ -r /proc/self/status ]; then
    while read -r key _ value _; do
        [ "$key" != Uid: ] || uid=$value
    done </proc/self/status
fi
scratch=$base/ghv-$uid
if [ -z "$uid" ] || [ ! -d "$scratch" ]; then
    uid=$("$busybox" id -u 2>/dev/null) || cannot_run
    scratch=$base/ghv-$uid
    [ -d "$scratch" ] || "$busybox" mkdir -m 0700 -- "$scratch" 2>/dev/null || [ -d "$scratch" ] ||
        die 73 "cannot make $scratch; scratch must be writable: configure another"
fi
# A folder that only we can enter. In /tmp anybody may have made one of that name before us, or a link: refuse those.
found=$("$busybox" stat -c '%u %a %F' -- "$scratch" 2>/dev/null)
case "$? $found" in
    "0 $uid 700 directory") ;;
    12[67]*) cannot_run ;;
    *) die 77 "$scratch is not a folder of mode 0700 that user $uid owns; remove it, or configure another scratch" ;;
esac

world=$scratch/world-$digest

# Cleaners of /tmp remove single files: believe a world only with all that this script can name cheaply.
whole() {
    [ -e "$world/unpacked" ] && [ -e "$world/ld.so" ] && [ -e "$world/so/libc.so.6" ] && [ -e "$world/guest.cpio" ] &&
        [ -e "$world/bin/python3.11" ] && [ -e "$world/bin/qemu-system-x86_64" ] && [ -e "$world/bin/mke2fs" ] &&
        [ -e "$world/uml/linux" ] && [ -e "$world/uml/xstate.so" ] &&
        [ -e "$world/lib/python3.11/os.pyc" ] && [ -e "$world/lib/python3.11/gridhypervisor/agent/main.pyc" ]
}

# Among whom a process id says who it is: this boot of this node and this namespace. There is no flock here to ask
# whether the one who unpacks into a folder lives.
herd() {
    boot=unknown
    [ ! -r /proc/sys/kernel/random/boot_id ] || read -r boot </proc/sys/kernel/random/boot_id
    space=$("$busybox" readlink /proc/self/ns/pid 2>/dev/null | "$busybox" tr -cd 0-9)
    printf '%s.%s' "${boot%%-*}" "$space"
}

unpack() {
    [ -r "$here/SUMS" ] || die 78 "cannot read $here/SUMS; upload the bundle again"
    sum=$("$busybox" sha256sum <"$here/SUMS")
    [ "${sum%% *}" = "$digest" ] || die 78 "$here/SUMS is not what the folder's name says; upload the bundle again"
    bad=$(cd -- "$here" && "$busybox" sha256sum -c SUMS 2>&1) ||
        die 78 "the bundle $here is damaged: $(printf '%s\n' "$bad" | "$busybox" grep -v ': OK$' | "$busybox" head -n 1); upload it again"
    # What dead starts and old bundles left. A world in use is touched by each role.
    me=$(herd)
    for old in "$scratch"/unpack."$me"-*; do
        pid=${old##*-}
        [ ! -e "/proc/$$" ] || [ -e "/proc/${pid%%.*}" ] || "$busybox" rm -rf "$old" 2>/dev/null
    done
    "$busybox" find "$scratch" -maxdepth 1 -name 'unpack.*' -mmin +60 -exec "$busybox" rm -rf {} + 2>/dev/null
    "$busybox" find "$scratch" -maxdepth 1 -name 'world-*' -mtime +60 -exec "$busybox" rm -rf {} + 2>/dev/null
    # What batch scripts left on nodes that do not see the workdir.
    "$busybox" find "$scratch" -maxdepth 1 -name 'words-*' -mtime +60 -exec "$busybox" rm -f {} + 2>/dev/null
    "$busybox" find "$scratch/bundle" -mindepth 1 -maxdepth 1 ! -name "$digest" -mtime +60 \
        -exec "$busybox" rm -rf {} + 2>/dev/null
    new=$("$busybox" mktemp -d "$scratch/unpack.$me-$$.XXXXXX") || die 73 "cannot write to $scratch; free space, or configure another scratch"
    trap '"$busybox" rm -rf "$new"' EXIT
    trap 'exit 143' TERM INT HUP
    # A pipe reports only its last command: the marker is packed last, so that a cut stream is seen too.
    "$here/zstd/ld.so" --library-path "$here/zstd" "$here/zstd/zstd" -dc "$here/world.tar.zst" |
        "$busybox" tar -x -C "$new" 2>"$new/.errors" &&
        "$busybox" tar -x -C "$new/lib/python3.11" -f "$here/agent.tar" 2>>"$new/.errors" &&
        "$busybox" cp "$here/guest.cpio" "$new/guest.cpio" 2>>"$new/.errors" && [ -e "$new/unpacked" ] ||
        die 73 "cannot unpack into $scratch: $("$busybox" head -n 1 "$new/.errors"); free space, or configure another scratch"
    "$busybox" rm -f "$new/.errors"
    "$new/ld.so" --version >/dev/null 2>&1 || die 126 "programs may not be started in $scratch (mounted noexec?); configure another scratch"
    # Two starts may race: rename refuses to replace a folder that holds something, and the first one stands.
    [ ! -e "$world" ] || whole || "$busybox" mv -T "$world" "$new/damaged" 2>/dev/null
    "$busybox" mv -T "$new" "$world" 2>/dev/null
    whole || die 73 "cannot move the unpacked bundle to $world; look at what is there"
    [ ! -e "$world/damaged" ] || "$busybox" rm -rf "$world/damaged"
    "$busybox" rm -rf "$new"
    trap - EXIT TERM INT HUP
}

whole || unpack
GHV_WORLD=$world GHV_BUNDLE=$here GHV_SCRATCH=$base
export GHV_WORLD GHV_BUNDLE GHV_SCRATCH
# By its path and not by -m, whose search costs as long as this script.
exec "$world/ld.so" --library-path "$world/so" "$world/bin/python3.11" -I -S -B -X utf8 \
    "$world/lib/python3.11/gridhypervisor/agent/main.pyc" "$role" "$@"
die 126 "cannot start $world/ld.so; configure another scratch"
