#!/usr/bin/env bash
# The main job on this machine: the embedded store, the fork site, and a service that starts by itself.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec bash examples/xmm/run.sh local build/demo
