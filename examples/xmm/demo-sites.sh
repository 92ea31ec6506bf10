#!/usr/bin/env bash
# The main job, unchanged, on four clusters at once: two Slurms, a Grid Engine and an HTCondor, started on this machine,
# each behind SSH and used as an ordinary user; then what ran where, under which hypervisor, and where the time went.
set -euo pipefail
cd "$(dirname "$0")/../.."
. examples/xmm/sites.sh
results=build/demo-sites

echo "Starting four clusters on this machine, each behind SSH …"
[ -e build/sites/demo-htcondor ] || echo "  (HTCondor comes from another Debian release: the first time it takes half a minute)"
start_sites demo-slurm-a:slurm:2 demo-slurm-b:slurm:1 demo-gridengine:gridengine:1 demo-htcondor:htcondor:1

"$ghv" image show xmm >/dev/null 2>&1 || "$ghv" image build examples/images/xmm/image.yaml
echo
echo "Connecting; an account that is new gets the bundle first (QEMU, User-Mode Linux, Python) …"
for site in "${sites[@]}"; do
    checked=$("$ghv" site check "$site") || { echo "$checked" >&2; exit 1; }
done
"$ghv" site list

echo
echo "The same job to each, and once more to one of them, with QEMU's emulation as the hypervisor:"
hand_in() { # a site, and further words for ghv run
    local folder=$results/$1${2+-$3}
    mkdir -p "$folder"
    jobs+=("$("$ghv" run --detach -f examples/xmm/job.yaml --site "$1" --to "$folder" "${@:2}")")
    echo "  ${jobs[-1]} to $*"
}
rm -rf "$results"
for site in "${sites[@]}"; do
    hand_in "$site"
done
hand_in demo-slurm-b --hypervisor tcg
echo "  (each comes home by itself; here they share one machine, so it takes about a minute)"
"$ghv" wait "${jobs[@]}"

echo
echo "Their results, byte for byte:"
(cd "$results" && sha256sum ./*/products/*) | awk -v jobs=${#jobs[@]} '
    { sub(".*/", "", $2); count[$1 "  " $2]++ }
    END { for (each in count) { print "  " each ": at " count[each] " of " jobs; if (count[each] != jobs) exit 1 } }' |
    sort -k 2

echo
"$ghv" ledger "${jobs[@]}" --plot "$results/map.png"
