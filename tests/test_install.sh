#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# What `make install` puts down is whole, and systemd finds nothing wrong with the unit, nor much exposed.
set -u
passed=0 failed=0
root=$(mktemp -d)
trap 'rm -rf "$root"' EXIT
check() {
    local what=$1
    shift
    if "$@" >"$root/log" 2>&1; then passed=$((passed + 1)); else
        failed=$((failed + 1))
        echo "FAILED $what"
        tail -5 "$root/log"
    fi
}

has() { for f in "$@"; do [ -s "$root/usr/$f" ] || { echo "missing $f"; return 1; }; done; }
unit=$root/usr/lib/systemd/system/ssmd.service

check installs make --no-print-directory NVCC= install DESTDIR="$root" PREFIX=/usr
check has_everything has bin/ssmd bin/ssm lib/libssm.so include/ssm.h share/ssmd/models/denoise-16k.safetensors \
    share/ssmd/schema.json lib/systemd/system/ssmd.service lib/sysusers.d/ssmd.conf lib/tmpfiles.d/ssmd.conf
check unit_starts_what_is_installed grep -q '^ExecStart=/usr/bin/ssmd ' "$unit"

exposure() {
    local worst
    worst=$(systemd-analyze security --offline=true "$unit" 2>&1 | sed -n 's/.*exposure level for [^:]*: \([0-9.]*\).*/\1/p')
    echo "exposure $worst"
    [ -n "$worst" ] && [ "$(echo "$worst <= 2.0" | bc)" = 1 ]
}
knows_all_settings() { ! systemd-analyze verify "$unit" 2>&1 | grep -iE 'unknown|failed to parse|invalid'; }
if command -v systemd-analyze >/dev/null && [ "$(systemd-analyze --version | sed -n '1s/systemd \([0-9]*\).*/\1/p')" -ge 250 ]; then
    check little_is_exposed exposure
    check systemd_reads_every_setting knows_all_settings
    check users_are_read systemd-sysusers --dry-run --root="$root" "$root/usr/lib/sysusers.d/ssmd.conf"
else
    echo "skipped: the unit's exposure: no systemd-analyze of version 250"
fi
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
