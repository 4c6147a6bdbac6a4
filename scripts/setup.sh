#!/usr/bin/env bash
# Installs what this clone needs and lacks. A second run with nothing to do takes well under a second.
#   scripts/setup.sh            to run the server and the demo
#   scripts/setup.sh --tests    and every test
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PATH:/usr/sbin:/sbin"

fail() { echo "setup: $*" >&2; exit 1; }
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

# Program or file that shows that a package is there, then the package.
needed="crun|runc:crun nft:nftables mmdebstrap:mmdebstrap catatonit:catatonit ip:iproute2
  /etc/ssl/certs/ca-certificates.crt:ca-certificates
  /usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring"
if [ "${1:-}" = --tests ]; then
  needed="$needed runc:runc docker-registry:docker-registry busybox:busybox-static curl:curl"
  # The JavaScript SDK needs 18 or later; an installed older one is left alone and the tests say so.
  needed="$needed node:nodejs npm:npm"
fi

is_there() {
  local name
  for name in ${1//|/ }; do
    case "$name" in
      /*) [ -e "$name" ] && return 0 ;;
      *) command -v "$name" >/dev/null && return 0 ;;
    esac
  done
  return 1
}

packages=""
for pair in $needed; do is_there "${pair%%:*}" || packages="$packages ${pair##*:}"; done
ldconfig -p | grep -q 'libseccomp\.so\.2' || packages="$packages libseccomp2"

python=""
for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
  if [ -n "$candidate" ] && command -v "$candidate" >/dev/null &&
    "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    python=$candidate
    break
  fi
done
[ -n "$python" ] || fail "Python 3.11 or later is needed: install python3.11 and python3.11-venv, or set PYTHON"
if ! "$python" -c 'import ensurepip, venv' 2>/dev/null; then
  packages="$packages $("$python" -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"
fi

if [ -n "$packages" ]; then
  command -v apt-get >/dev/null || fail "these packages are missing, and there is no apt-get here:$packages"
  echo "setup: installing system packages:$packages"
  log=$(mktemp)
  trap 'rm -f "$log"' EXIT
  # No service of a package is started: the tests start what they need themselves. Where the machine
  # has a policy of its own for that, it stays.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' | as_root tee $policy >/dev/null
    as_root chmod 755 $policy
    trap 'rm -f "$log"; as_root rm -f $policy' EXIT
  fi
  # The package lists of a fresh machine may be missing or old: they are read again only when needed.
  # shellcheck disable=SC2086 - a list of names
  install() { as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends $packages; }
  install >"$log" 2>&1 || { as_root apt-get update >>"$log" 2>&1 && install >>"$log" 2>&1; } || {
    tail -n 25 "$log" >&2
    fail "apt-get could not install:$packages"
  }
fi

# The virtual environment is made again only when what is locked has changed.
stamp="$(cat requirements/dev.txt pyproject.toml | sha256sum | cut -d' ' -f1) $("$python" -c 'import sys; print(sys.version, sys.base_prefix)') $PWD"
if [ ! -x .venv/bin/opene2b ] || [ "$(cat .venv/.installed 2>/dev/null)" != "$stamp" ]; then
  echo "setup: installing Python packages into .venv (hash-locked)"
  rm -rf .venv
  "$python" -m venv .venv
  .venv/bin/python -m pip install -qq --disable-pip-version-check --require-hashes -r requirements/dev.txt
  # The package itself: no dependency and no build tool beyond what is locked.
  .venv/bin/python -m pip install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
  printf '%s' "$stamp" >.venv/.installed
fi
