#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# tests/valgrind.sh BUILD TEST...: each test program, the daemon and the tool under memcheck, on the AVX2 path (it knows no AVX-512).
# An error or a definite leak fails; what is libraries' own is in tests/data/valgrind.supp. A case that fails because all is thirty
# times as slow doesn't. A device's helper runs without it.
set -u
build=$1
shift
command -v valgrind >/dev/null || { echo "make valgrind: no valgrind; apt-get install valgrind" >&2; exit 69; }
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
${CC:-cc} -D_GNU_SOURCE -O -shared -fPIC -o "$folder/self.so" tests/valgrind_self.c -ldl || exit 70
passed=0 failed=0 limit=${VALGRIND_SECONDS:-900}
errors='Invalid (read|write|free)|uninitialised|unaddressable|Mismatched|overlap|[0-9] bytes in .* are definitely lost'
check() { # NAME PROGRAM...
    local name=$1 start=$SECONDS status=0 cases
    shift
    : >"$folder/report"
    LD_PRELOAD=$folder/self.so timeout "$limit" valgrind -q --leak-check=full --show-leak-kinds=definite --fair-sched=yes --suppressions=tests/data/valgrind.supp \
        --log-file="$folder/report" "$@" >"$folder/said" 2>&1 || status=$?
    cases=$(grep -cE '^\[  FAILED  \] [a-z]' "$folder/said")
    # Where a case gives up, for want of time, it leaves what it has.
    [ "$cases" -eq 0 ] || sed -i '/are definitely lost/d' "$folder/report"
    if { [ $status -ne 0 ] && [ $status -ne 124 ] && [ "$cases" -eq 0 ]; } || grep -qE "$errors" "$folder/report"; then
        printf '%-28s FAILED, ended with %d  %4d s\n' "$name" $status $((SECONDS - start))
        grep -E '^\[  FAILED|ssmd:|ssm ' "$folder/said" | tail -5
        grep -E -A12 "$errors" "$folder/report" | head -40
        failed=$((failed + 1))
    elif [ $status -eq 124 ]; then
        printf '%-28s not at its end in %d s, clean so far\n' "$name" "$limit"
    else
        printf '%-28s clean %4d s%s\n' "$name" $((SECONDS - start)) "$([ "$cases" -eq 0 ] || echo "; $((cases / 2)) cases were too slow")"
        passed=$((passed + 1))
    fi
}
for test in "$@"; do
    CHANGES=2000 MONTH_DAYS=.02 check "$(basename "$test")" "$test"
done
cat >"$folder/c.yaml" <<YAML
version: 1
publish: ipc://$folder/publish
http: 127.0.0.1:29465
state_dir: $folder/state
pipelines:
  p:
    source: {type: file, path: tests/data/demo-noisy.flac, paced: false}
    model: tests/data/tiny-denoise.safetensors
    sinks: [{type: publish}, {type: file, path: $folder/out.wav}]
  q:
    source: {type: file, path: tests/data/demo-clean.flac, paced: false}
    model: tests/data/tiny-tag.safetensors
    sinks: [{type: publish}, {type: jsonl, path: $folder/out.jsonl}]
YAML
check ssmd "$build/ssmd" --config "$folder/c.yaml"
check "ssm denoise" "$build/ssm" denoise tests/data/demo-noisy.flac "$folder/clean.flac" --model tests/data/tiny-denoise.safetensors
check "ssm tag" "$build/ssm" tag tests/data/demo-noisy.flac --model tests/data/tiny-tag.safetensors
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
