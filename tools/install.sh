#!/usr/bin/env bash
# Called by `make install` and `make uninstall`: install.sh VERB DESTDIR PREFIX SYSCONFDIR SOURCE:DESTINATION:MODE...
# Texts get PREFIX in place of /usr/local, SYSCONFDIR in place of /etc. A configuration that is there is never
# overwritten nor removed.
set -euo pipefail
verb=$1 root=$2 prefix=$3 conf=$4
shift 4
for path in "$prefix" "$conf" "${root:-/}"; do
    [[ $path == /* && $path != *[\|\&:\ ]* ]] || { echo "install: '$path' is no plain absolute path" >&2; exit 1; }
done

put() { # source destination mode
    case $1 in
    *.service | *.bash | *.example | *.[158])
        install -d "$(dirname "$2")"
        sed "s|/usr/local/|$prefix/|g; s|/etc/nibbled.yaml|$conf/nibbled.yaml|g" "$1" >"$2.part"
        chmod "$3" "$2.part"
        mv -f "$2.part" "$2"
        ;;
    *) install -D -m "$3" "$1" "$2" ;;
    esac
}

put_config() {
    local at=$root$conf/nibbled.yaml
    if [ ! -e "$at" ]; then
        install -D -m 644 etc/nibbled.yaml "$at"
        echo "$at"
    elif ! cmp -s etc/nibbled.yaml "$at"; then
        install -m 644 etc/nibbled.yaml "$at.new"
        echo "$at is kept; the new defaults are $at.new"
    fi
}

for entry in "$@"; do
    IFS=: read -r source destination mode <<<"$entry"
    at=$root$prefix/$destination
    if [ "$verb" = install ]; then
        put "$source" "$at" "$mode"
        echo "$at"
    else
        rm -f "$at"
    fi
done
if [ "$verb" = install ]; then
    put_config
    if [ -z "$root" ]; then
        echo "Next, with systemd: systemd-sysusers; systemd-tmpfiles --create; systemctl daemon-reload"
        echo "then put a model image at the configuration's image.path, and: systemctl enable --now nibbled.socket"
    fi
else
    for folder in share/nibbled/profiles share/nibbled lib/systemd/system/nibbled.service.d; do
        [ ! -d "$root$prefix/$folder" ] || rmdir --ignore-fail-on-non-empty "$root$prefix/$folder"
    done
    rm -f "$root$conf/nibbled.yaml.new"
    echo "$root$conf/nibbled.yaml stays"
fi
