#!/usr/bin/env bash
# The main job on a real Slurm: two nodes and an SSH front-end, started on this machine, used as an ordinary user whose
# nodes have neither QEMU nor Python. What it starts ends with it; build/slurm-site is kept, so a second run sets nothing
# up again.
set -euo pipefail
cd "$(dirname "$0")/../.."
ghv=.venv/bin/ghv name=demo-slurm results=build/demo-slurm

as_root=()
if [ "$(id -u)" != 0 ]; then
    # Slurm starts jobs as other users, and the nodes' root is mounted. GridHypervisor itself needs no root.
    if ! command -v sudo >/dev/null || ! sudo -v; then
        echo "demo-slurm: starting a Slurm on this machine needs root: run this as root, or as a user of sudo" >&2
        exit 1
    fi
    as_root=(sudo)
fi

service_ran=no
"$ghv" service status >/dev/null && service_ran=yes

end() {
    local code=$?
    trap '' INT TERM # a second Ctrl-C must not leave half of it running
    if ! "$ghv" site remove $name >/dev/null 2>&1 && "$ghv" site show $name >/dev/null 2>&1; then
        echo "demo-slurm: jobs are left at $name; the next 'make demo-slurm' brings it back: ghv list --site $name" >&2
    fi
    [ $service_ran = yes ] || "$ghv" service stop >/dev/null || true
    if [ -n "${site_in-}" ]; then
        exec {site_in}>&- # at the end of its input the site ends
        wait "$site_pid" || true
    fi
    exit $code
}
trap end EXIT
trap 'exit 130' INT TERM

echo "Starting a Slurm of two nodes behind SSH …"
coproc SITE { trap '' INT; exec "${as_root[@]}" .venv/bin/python -m testsites up --keep build/slurm-site; }
site_pid=$SITE_PID site_in=${SITE[1]}
read -r described <&"${SITE[0]}" || exit 1 # it has said why
read -r host port user key known_hosts < <(.venv/bin/python -c '
import json, sys
print(*(json.loads(sys.argv[1])[word] for word in ("host", "port", "user", "key", "known_hosts")))' "$described")

at_front_end() {
    ssh -T -F none -i "$key" -o UserKnownHostsFile="$known_hosts" -p "$port" "$user@$host" "$@"
}
look='for p in python3 qemu-system-x86_64; do command -v $p || echo "no $p"; done'
echo "On its front-end ($user@$host):" $(at_front_end "$look")
echo "On its nodes:" $(at_front_end "echo '#!/bin/sh
$look' | sbatch --quiet --wait --output=look.out && cat look.out && rm look.out")

if ! "$ghv" site show $name 2>/dev/null | grep -qF "$user@$host:$port"; then
    "$ghv" site remove $name >/dev/null 2>&1 || true # it is of a site that is gone
    "$ghv" site add $name --kind slurm --host "$host" --port "$port" --user "$user" --key "$key" \
        --known-hosts "$known_hosts" --option spool_lag=5 >/dev/null
fi
bash examples/xmm/run.sh $name $results

if [ -d build/demo/products ]; then
    echo
    for file in "$results"/products/*; do
        cmp "$file" "build/demo/products/${file##*/}" && echo "  ${file##*/}: the same bytes as from 'make demo'"
    done
fi
