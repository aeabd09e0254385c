#!/usr/bin/env bash
# Installs the packages that a build and the tests need on Debian 12, where they are missing. Root or sudo.
# PYTHON=no leaves out what only the tests need.
set -euo pipefail

packages=(gcc make pkg-config libc6-dev libyaml-dev libmicrohttpd-dev libjansson-dev libssl-dev
    libsystemd-dev libcurl4-openssl-dev libedit-dev
    check curl ca-certificates)
[ "${PYTHON:-yes}" = no ] || packages+=(python3 python3-venv)

missing=()
for p in "${packages[@]}"; do
    dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q 'install ok installed' || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0

if ! command -v apt-get >/dev/null; then
    echo "setup: this is no Debian system; install by hand: ${missing[*]}" >&2
    exit 1
fi
as_root=()
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "setup: run as root, or install: ${missing[*]}" >&2; exit 1; }
    as_root=(sudo)
fi
echo "setup: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -q
"${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}"
