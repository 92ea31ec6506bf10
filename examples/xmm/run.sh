# The science case at one site, with its plots: what demo.sh and demo-slurm.sh share. usage: run.sh SITE RESULTS
set -euo pipefail
site=$1 results=$2
ghv=.venv/bin/ghv

"$ghv" image show xmm >/dev/null 2>&1 || "$ghv" image build examples/images/xmm/image.yaml
mkdir -p "$results"
"$ghv" run -f examples/xmm/job.yaml --site "$site" --to "$results" -o json >"$results/job.json"
job=$(.venv/bin/python -c 'import json, sys; print(json.load(open(sys.argv[1]))["job"]["id"])' "$results/job.json")
.venv/bin/python examples/xmm/plots.py "$results"
"$ghv" ledger "$job" --plot "$results/ledger.png" >/dev/null 2>&1
"$ghv" show "$job"
echo
echo "Plots in $PWD/$results"
for file in "$results"/*.png; do
    echo "  ${file##*/}"
done
