# Sourced by scripts/start and scripts/test: setup EXTRAS makes .venv and installs the project into it, editable.
# When nothing has changed it runs no program at all, so that starting costs nothing.

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)
venv=$root/.venv

say() { printf 'blockmon: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# What .venv was made from: it is bound to the place where it stands, and to what pyproject.toml demands.
wanted_stamp() { wanted="$root"$'\n'"$(<"$root/pyproject.toml")"; }

is_installed() {
    local stamp
    [[ -x $venv/bin/python ]] || return 1
    for stamp in "$@"; do
        [[ -f $venv/installed-$stamp && $(<"$venv/installed-$stamp") == "$wanted" ]] && return 0
    done
    return 1
}

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

find_python() {
    local candidate
    # Debian's own interpreter is built with profile-guided optimisation, so it comes before others in PATH.
    for candidate in ${BLOCKMON_PYTHON:-/usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11}; do
        if command -v "$candidate" >/dev/null && is_new_enough "$candidate"; then
            python=$(command -v "$candidate")
            return
        fi
    done
    die 'needs Python 3.11 or newer (set BLOCKMON_PYTHON to its path)'
}

need_venv_module() {
    "$python" -c 'import ensurepip, venv' 2>/dev/null && return
    if [[ $EUID == 0 ]] && command -v apt-get >/dev/null; then
        say 'installing python3-venv'
        apt_install python3-venv >&2 || true
        "$python" -c 'import ensurepip, venv' 2>/dev/null && return
    fi
    die "Python's venv module is missing; on Debian: apt-get install python3-venv"
}

# Install Debian packages. apt's lists may be missing or old, so a failure is answered by fetching them once.
apt_install() {
    local -x DEBIAN_FRONTEND=noninteractive
    local options=(-y -q --no-install-recommends -o DPkg::Lock::Timeout=300)
    apt-get install "${options[@]}" "$@" </dev/null && return
    apt-get update -q </dev/null && apt-get install "${options[@]}" "$@" </dev/null
}

install_project() {
    local name=$1 extras=$2
    if [[ -d $venv ]] && ! { [[ -x $venv/bin/python && -x $venv/bin/pip ]] && read_place && [[ $place == "$root" ]]; }; then
        say 'making .venv anew: it is incomplete or was made elsewhere'
        rm -rf -- "$venv"
    fi
    if [[ ! -d $venv ]]; then
        find_python
        need_venv_module
        say "making .venv with $python"
        "$python" -m venv "$venv" || die 'python -m venv failed'
        printf '%s\n' "$root" >"$venv/place"
    fi
    say "installing blockmon[$extras]"
    PIP_DISABLE_PIP_VERSION_CHECK=1 "$venv/bin/pip" install --quiet --editable "$root[$extras]" </dev/null >&2 ||
        die 'pip could not install it'
    printf '%s' "$wanted" >"$venv/installed-$name"
}

read_place() {
    place=
    [[ -f $venv/place ]] && place=$(<"$venv/place")
    [[ -n $place ]]
}

# setup NAME EXTRAS [OTHER…]: make sure that the project is installed with EXTRAS; an installation made under one of
# the OTHER names has all that NAME needs.
setup() {
    local name=$1 extras=$2
    shift 2
    local wanted place python
    wanted_stamp
    is_installed "$name" "$@" && return
    (
        # Two that start at once must not both build.
        exec 9>"$root/.venv.lock"
        ! command -v flock >/dev/null || flock 9
        is_installed "$name" "$@" || install_project "$name" "$extras"
    ) || exit 1
}
