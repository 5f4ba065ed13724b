#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# What `make install` puts down is whole, and systemd finds nothing wrong with the unit, nor much exposed.
set -u
passed=0 failed=0
folder=$(mktemp -d) root=$folder/"a root"
mkdir "$root"
trap 'rm -rf "$folder"' EXIT
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
check installs_below_a_blank make --no-print-directory NVCC= install DESTDIR="$folder/two" PREFIX="/opt/of mine"
check starts_below_a_blank grep -q '^ExecStart="/opt/of mine/bin/ssmd" ' "$folder/two/opt/of mine/lib/systemd/system/ssmd.service"
check has_everything has bin/ssmd bin/ssm lib/libssm.so include/ssm.h share/ssmd/models/denoise-16k.safetensors \
    share/ssmd/schema.json share/ssmd/grafana/grafana.json share/man/man1/ssm.1 share/man/man5/ssmd.yaml.5 \
    share/man/man8/ssmd.8 lib/systemd/system/ssmd.service lib/sysusers.d/ssmd.conf lib/tmpfiles.d/ssmd.conf
check unit_starts_what_is_installed grep -q '^ExecStart="/usr/bin/ssmd" ' "$unit"

names_every_command() {
    local name
    "$root/usr/bin/ssm" --help | sed -n '/^Commands:/,/^$/s/^  \([a-z]*\( [a-z]\+\)\?\)   *.*/\1/p' >"$root/names"
    [ "$(wc -l <"$root/names")" -ge 10 ] || return 1
    while read -r name; do grep -qF "\\fB$name\\fR" "$root/usr/share/man/man1/ssm.1" || { echo "no $name"; return 1; }; done <"$root/names"
}
reads_as_a_manual() {
    local page
    for page in man1/ssm.1 man5/ssmd.yaml.5 man8/ssmd.8; do
        man --warnings=w -E UTF-8 -l -Tutf8 -Z "$root/usr/share/man/$page" 2>&1 >/dev/null | grep . && return 1
        ! grep -q @ "$root/usr/share/man/$page" || return 1
    done
    for page in clients/ssm.1 daemon/ssmd.8; do ! man -E UTF-8 -l "$page" | grep @ || return 1; done
}
# They are what a package holds, whatever the tree was built for, and wherever it is.
finds_what_lies_beside() {
    "$root/usr/bin/ssm" model inspect none-such 2>&1 | grep -F "$root/usr/share/ssmd/models" || return 1
    mkdir "$root/bin" && ln -s "$root/usr/bin/ssm" "$root/bin/ssm" && cd / && PATH="$root/bin:$PATH" ssm model inspect none-such 2>&1 |
        grep -F "$root/usr/share/ssmd/models"
}
check finds_what_lies_beside finds_what_lies_beside
check manual_names_every_command names_every_command
if command -v man >/dev/null && command -v groff >/dev/null; then
    check manuals_are_read_without_a_warning reads_as_a_manual
else
    echo "skipped: manual pages: no man here"
fi

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
