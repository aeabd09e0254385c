#!/usr/bin/env bash
# Runs the installed daemon under a real systemd, in a container made from Debian's packages: tests/systemd.sh [ROOT].
# Needs root, debootstrap and systemd-nspawn. ROOT, a folder with a Debian 12 tree, is made when it is not there and
# kept for the next run; without the argument a temporary one is made and removed. Not a part of `make check`.
set -euo pipefail
cd "$(dirname "$0")/.."
packages=systemd,systemd-sysv,dbus,python3,libyaml-0-2,libmicrohttpd12,libjansson4,libssl3,libedit2,libcurl4

[ "$(id -u)" -eq 0 ] || { echo "systemd: run as root" >&2; exit 1; }
for program in debootstrap systemd-nspawn; do
    command -v "$program" >/dev/null || { echo "systemd: apt-get install debootstrap systemd-container" >&2; exit 1; }
done
root=${1:-$(mktemp -d)}
[ $# -gt 0 ] || trap 'rm -rf "$root"' EXIT
mkdir -p "$root"
chmod 755 "$root" # the services in it are not root
if [ ! -e "$root/etc/debian_version" ]; then
    mirror=${MIRROR:-$(apt-get indextargets --format '$(REPO_URI)' | grep -v security | head -n 1)}
    debootstrap --variant=minbase --include="$packages" bookworm "$root" "$mirror" >"$root.log" 2>&1 ||
        { tail -n 5 "$root.log"; exit 1; }
    rm -f "$root.log"
fi

make -s VARIANT=rel all
make -s VARIANT=rel install DESTDIR="$root" PREFIX=/usr SYSCONFDIR=/etc >/dev/null
in_root() { chroot "$root" "$@"; }
in_root systemd-sysusers nibbled.conf
systemd-tmpfiles --root="$root" --create nibbled.conf
for user in member stranger; do in_root id "$user" >/dev/null 2>&1 || in_root useradd -M "$user"; done
in_root usermod -aG nibbled member
build/rel/nibble synth nano "$root/var/lib/nibbled/model.nib" --seed 1 >/dev/null
cat >"$root/etc/nibbled.yaml" <<'YAML'
engine: {threads: 2, slots: 4, ctx_tokens: 16384}
limits: {queue: 16, json_bytes: 8388608}
peers: [{group: nibbled}, {uid: 0}]
YAML
install -d "$root/opt/check"
install -m 644 tests/systemd_inside.py "$root/opt/check"
cat >"$root/etc/systemd/system/check.service" <<'UNIT'
[Unit]
After=multi-user.target nibbled.socket
SuccessAction=poweroff-immediate
FailureAction=poweroff-immediate
[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -u /opt/check/systemd_inside.py
StandardOutput=file:/opt/check/results
StandardError=inherit
TimeoutStartSec=300
UNIT
in_root systemctl -q enable nibbled.socket
install -d "$root/etc/systemd/system/default.target.wants"
ln -sf ../check.service "$root/etc/systemd/system/default.target.wants/check.service"
rm -rf "$root/opt/check/results" "$root"/var/log/journal "$root"/etc/systemd/system/nibbled.service.d
mkdir -p "$root/run/systemd" # a kept tree
# memory.lock needs the capability; a container is not given it by itself
timeout 400 systemd-nspawn -b --quiet --register=no --keep-unit --console=pipe --capability=CAP_IPC_LOCK \
    --directory="$root" >"$root/opt/check/boot" 2>&1 </dev/null || true
if [ ! -s "$root/opt/check/results" ]; then
    cat "$root/opt/check/boot"
    echo "systemd: the container did not boot"
    exit 1
fi
cat "$root/opt/check/results"
tail -n 1 "$root/opt/check/results" | grep -q ', 0 failed'
