#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Each fuzzer's corpus, and so many inputs made of it at random (tests/fuzz_main.c). `make fuzz` is the long one.
set -u
passed=0 failed=0
mkdir -p build/fuzz
for source in tests/fuzz_*.c; do
    name=$(basename "$source" .c)
    [ "$name" != fuzz_main ] || continue
    if said=$("$SSM_BUILD/tests/brief_$name" "tests/data/corpus_${name#fuzz_}" "${FUZZ_INPUTS:-2000}" 2>&1); then
        passed=$((passed + 1))
    else
        echo "FAILED $name: ended with $?: $said"
        failed=$((failed + 1))
    fi
done
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
