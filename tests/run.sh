#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# tests/run.sh BUILD T F TEST...: run test programs and scripts, print each one's failures, then 'N passed, N failed'.
# T picks one by name; F is a cmocka filter. A script prints 'N passed, N failed' itself, last.
set -u
build=$1 pick=$2 filter=$3
shift 3
export SSM_BUILD=$build SSMD=$build/ssmd SSM=$build/ssm CMOCKA_TEST_FILTER=$filter
export ASAN_OPTIONS=detect_leaks=1:detect_stack_use_after_return=1 LSAN_OPTIONS="suppressions=$PWD/tests/data/lsan.supp print_suppressions=0" UBSAN_OPTIONS=print_stacktrace=1
export TSAN_OPTIONS="suppressions=$PWD/tests/data/tsan.supp halt_on_error=0 exitcode=66"

passed=0 failed=0
log=$(mktemp)
trap 'rm -f "$log"' EXIT
for test in "$@"; do
    name=$(basename "${test%.*}")
    [ -z "$pick" ] || [ "$name" = "test_$pick" ] || continue
    start=${EPOCHREALTIME//[.,]/}
    case $test in
    *.py) /usr/bin/python3 "$test" >"$log" 2>&1 ;;
    *.sh) bash "$test" >"$log" 2>&1 ;;
    *) timeout 900 "$test" >"$log" 2>&1 ;;
    esac
    status=$?
    case $test in
    *.py | *.sh)
        ok=$(sed -n 's/^\([0-9]*\) passed, [0-9]* failed.*/\1/p' "$log" | tail -1)
        bad=$(sed -n 's/^[0-9]* passed, \([0-9]*\) failed.*/\1/p' "$log" | tail -1) ;;
    *)
        ok=$(grep -c '^\[       OK \]' "$log")
        bad=$(grep -cE '^\[  FAILED  \] [a-zA-Z_0-9]+$' "$log")
        bad=$((bad / 2)) ;; # cmocka names each one twice
    esac
    ok=${ok:-0} bad=${bad:-0}
    [ "$status" -eq 0 ] || [ "$bad" -gt 0 ] || bad=1 # a crash, a sanitizer's report, a time-out
    printf '%-28s %4d passed %3d failed %7.1f s\n' "$name" "$ok" "$bad" $(((${EPOCHREALTIME//[.,]/} - start) / 100000))e-1
    if [ "$bad" -gt 0 ] || [ -n "$pick" ]; then cat "$log"; else grep -E '^\[  SKIPPED \] [a-zA-Z_0-9]+$|skipped:' "$log" | sort -u | sed 's/^/    /'; fi
    passed=$((passed + ok)) failed=$((failed + bad))
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ] && [ "$passed" -gt 0 ]
