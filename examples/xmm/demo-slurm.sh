#!/usr/bin/env bash
# The main job on a real Slurm: two nodes and an SSH front-end, started on this machine, used as an ordinary user whose
# nodes have neither QEMU nor Python. What it starts ends with it; build/sites is kept, so a second run sets nothing up
# again.
set -euo pipefail
cd "$(dirname "$0")/../.."
. examples/xmm/sites.sh

echo "Starting a Slurm of two nodes behind SSH …"
start_sites demo-slurm-a:slurm:2
bash examples/xmm/run.sh demo-slurm-a build/demo-slurm

if [ -d build/demo/products ]; then
    echo
    for file in build/demo-slurm/products/*; do
        cmp "$file" "build/demo/products/${file##*/}" && echo "  ${file##*/}: the same bytes as from 'make demo'"
    done
fi
