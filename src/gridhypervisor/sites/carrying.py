"""The batch script for nodes that do not see the account's workdir: pure text.

It brings the bundle from the relay into the node's scratch, unless an earlier job did, and becomes the courier. Of the
node it needs POSIX's shell and utilities, something that speaks HTTP, and something that computes SHA-256; nothing of
the bundle is run before its digest was seen to be the one that stands in the script, and of a bundle that is kept there
is fetched anew what somebody has removed or changed.

The ticket is in the script as well, which batch systems keep from other users (docs/sites.md says which), and reaches
the courier on its stdin: never an argument, a file, or the environment.
"""

from __future__ import annotations

import shlex

from gridhypervisor.model.batch import Carried, Submission

WAIT = 600
"""Seconds that a node tries to fetch the bundle: a relay that is away comes back meanwhile, or the controller is. What
they are for a job that does not say; its courier then waits for the relay as long as the job lasts."""

_SCRIPT = r"""#!/bin/sh
umask 077
%(settings)s
die() { printf 'ghv: %%s\n' "$2" >&2; exit "$1"; }
uid=$(id -u) own=$base/ghv-$uid
[ -d "$own" ] || mkdir -m 0700 "$own" 2>/dev/null
set -- $(ls -ldn "$own" 2>&1)
case "$1 $3" in
drwx------*" $uid") ;;
*) die 77 "$own is not a folder of mode 0700 that user $uid owns; remove it, or configure another scratch" ;;
esac
words=$own/words-$entry bundle=$own/bundle/$digest
exec >>"$words" 2>&1

# The SHA-256 of what comes in.
if command -v sha256sum; then with=sha256sum
elif command -v shasum; then with='shasum -a 256'
elif command -v openssl; then with='openssl dgst -sha256 -r'
else die 72 "this node has neither sha256sum, shasum nor openssl, so nothing that it fetches could be believed"
fi >/dev/null
sum() { $with | { read -r word _ && printf %%s "$word"; }; }

# One file over HTTP, by the means $1, from port $2. None waits for ever for an address that swallows what it is sent.
limit=''
! command -v timeout >/dev/null || limit='timeout 600'
ask() {
    case $1 in
    curl) curl -fsS --noproxy '*' --connect-timeout 10 --max-time 600 "http://$host:$2/$3" ;;
    wget) http_proxy='' wget -q -t 1 -T 30 -O - "http://$host:$2/$3" ;;
    bash) $limit bash -c 'exec 3<>"/dev/tcp/$1/$2" || exit
        printf "GET /%%s HTTP/1.0\r\n\r\n" "$3" >&3
        read -r _ status _ <&3 && [ "$status" = 200 ] || exit
        while read -r line <&3 && [ ${#line} -gt 1 ]; do :; done
        cat <&3' bash "$host" "$2" "$3" ;;
    python3) python3 -I -c 'import shutil, sys, urllib.request as r
open = r.build_opener(r.ProxyHandler({})).open
shutil.copyfileobj(open("http://%%s:%%s/%%s" %% tuple(sys.argv[1:]), timeout=30), sys.stdout.buffer)' \
        "$host" "$2" "$3" ;;
    perl) perl -MIO::Socket::INET -e 'alarm 600;
        $s = IO::Socket::INET->new(PeerAddr => $ARGV[0], PeerPort => $ARGV[1], Timeout => 10) or die "$@\n";
        print $s "GET /$ARGV[2] HTTP/1.0\r\n\r\n"; $s->flush; <$s> =~ / 200 / or exit 1;
        while (<$s>) { last if /^\r?$/ } binmode STDOUT; $/ = \65536; print while <$s>' "$host" "$2" "$3" ;;
    esac
}

# The file $1 of the bundle, whose SHA-256 is $2: the one that is kept here, or else by whatever means this node has and
# from whichever port answers. It is put in its place whole, so two jobs may do this at once.
part() {
    [ ! -f "$bundle/$1" ] || [ "$(sum <"$bundle/$1")" != "$2" ] || return 0
    tried=''
    for means in $known curl wget python3 perl bash; do
        command -v "$means" >/dev/null || continue
        tried="$tried $means"
        for port in $at $ports; do
            { ask "$means" "$port" "$digest/$1" >"$new" && [ "$(sum <"$new")" = "$2" ] && chmod 0700 "$new" &&
                mv -f "$new" "$bundle/$1"; } 2>"$new.why" && known=$means at=$port && return
            [ "$(date +%%s)" -lt "$end" ] || return
        done
    done
    return 1
}

bring() {
    known='' at=''
    mkdir -p "$bundle/zstd" || die 73 "cannot write to $own; free space, or configure another scratch"
    part SUMS "$digest" || return
    while read -r expected file; do
        part "$file" "$expected" || return
    done <"$bundle/SUMS"
}

new=$own/bundle/.$digest.$entry.$$
end=$(($(date +%%s) + %(wait)d)) pause=2
until bring; do
    rm -f "$new"
    [ -n "$tried" ] || die 72 "this node has neither curl, wget, python3, perl nor bash to fetch from the relay with"
    [ "$(date +%%s)" -lt "$end" ] ||
        die 69 "cannot fetch the bundle from $host, ports $ports, by$tried: $(cat "$new.why"; rm -f "$new.why")"
    sleep "$pause"
    [ "$pause" -ge 30 ] || pause=$((2 * pause))
done
rm -f "$new.why"
exec /bin/sh "$bundle/start" courier --scratch "$base" --gate "$host:%(gate)s" --entry "spool/$entry" \
    --words "$words"%(patience)s <<'TICKET'
%(ticket)s
TICKET
"""


def courier_script(job: Submission, carried: Carried) -> str:
    """The text that the batch system runs for a job whose entry is carried."""
    host, _, gate = carried.gate.rpartition(":")
    first, _, last = gate.partition("-")
    scratch = shlex.quote(job.scratch) if job.scratch else '"$TMPDIR"'
    ports = " ".join(map(str, range(int(first), int(last) + 1)))
    lines = [] if job.scratch else ['[ -d "${TMPDIR-}" ] || TMPDIR=/tmp']
    lines.append(f"base={scratch} host={shlex.quote(host)} ports={shlex.quote(ports)}")
    lines.append(f"digest={shlex.quote(carried.bundle)} entry={shlex.quote(job.name)}")
    patience = f" --patience {carried.patience}" if carried.patience is not None else ""
    return _SCRIPT % {
        "settings": "\n".join(lines), "wait": WAIT if carried.patience is None else carried.patience, "gate": gate,
        "patience": patience, "ticket": carried.ticket.strip(),
    }  # fmt: skip
