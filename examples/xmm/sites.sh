# Clusters on this machine for the demos: sourced. `start_sites NAME:KIND:NODES…` starts them, says what there is on each,
# and adds them to ghv, as an ordinary user who logs in over SSH. They end with the script, however it ends, and jobs of
# it that have not ended by then are cancelled first. build/sites keeps what was set up, for the next time.
ghv=.venv/bin/ghv demo=$(basename "$0" .sh) sites=() jobs=()
service_ran=no
"$ghv" service status >/dev/null && service_ran=yes

as_root=()
if [ "$(id -u)" != 0 ]; then
    # A batch system starts jobs as other users, and the nodes' root is mounted. GridHypervisor itself needs no root.
    if ! command -v sudo >/dev/null || ! sudo -v; then
        echo "$demo: starting clusters on this machine needs root: run this as root, or as a user of sudo" >&2
        exit 1
    fi
    as_root=(sudo)
fi

end() {
    local code=$? site
    trap '' INT TERM # a second Ctrl-C must not leave half of it running
    if [ $code != 0 ] && [ ${#jobs[@]} != 0 ]; then
        echo "$demo: cancelling what still runs …" >&2
        "$ghv" cancel "${jobs[@]}" >/dev/null 2>&1 || true
        timeout 120 "$ghv" wait "${jobs[@]}" >/dev/null 2>&1 || true
    fi
    for site in "${sites[@]}"; do
        if ! "$ghv" site remove "$site" >/dev/null 2>&1 && "$ghv" site show "$site" >/dev/null 2>&1; then
            echo "$demo: jobs are left at $site; the next 'make $demo' brings it back: ghv list --site $site" >&2
        fi
    done
    [ $service_ran = yes ] || "$ghv" service stop >/dev/null || true
    if [ -n "${clusters_in-}" ]; then
        exec {clusters_in}>&- # at the end of their input the clusters end
        wait "$clusters_pid" || true
    fi
    exit $code
}
trap end EXIT
trap 'exit 130' INT TERM

start_sites() {
    local wanted name described told address nodes ssh
    coproc CLUSTERS { trap '' INT; exec "${as_root[@]}" .venv/bin/python -m testsites up --keep build/sites "$@"; }
    # Bash keeps these two from everything that it starts, which would otherwise keep the clusters.
    clusters_pid=$CLUSTERS_PID clusters_out=${CLUSTERS[0]} clusters_in=${CLUSTERS[1]}
    for wanted in "$@"; do
        name=${wanted%%:*}
        { read -r described <&"$clusters_out"; } 2>/dev/null || exit 1 # it has said why
        mapfile -t told < <(.venv/bin/python -c '
import json, sys
told = json.loads(sys.argv[1])
print(told["address"], len(told["nodes"]), len(told["ssh"]), *told["ssh"], *told["words"], sep="\n")' "$described")
        address=${told[0]} nodes=${told[1]} ssh=("${told[@]:3:told[2]}")
        [ "$nodes" = 1 ] && nodes="1 node" || nodes="$nodes nodes"
        echo "  $name: $nodes, $address," "$("${ssh[@]}" -T "$look" | paste -sd, | sed 's/,/, /')"
        sites+=("$name")
        add_site "$name" "$address" "${told[@]:3+told[2]}"
    done
}

# What is there of the programs that the job will need.
look='for p in python3 qemu-system-x86_64; do command -v $p || echo "no $p"; done'

# A site of that name is a cluster that is gone, unless it is at the same address; then jobs may be left there.
add_site() {
    local name=$1 address=$2
    shift 2
    if ! "$ghv" site show "$name" 2>/dev/null | grep -qF "$address"; then
        "$ghv" site remove "$name" >/dev/null 2>&1 || true
        "$ghv" site add "$name" "$@" --option spool_lag=5 --scratch /tmp >/dev/null
    fi
}
