#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# tests/fuzz.sh SECONDS FUZZER...: run each fuzzer over a copy of its corpus in tests/data/corpus_<name>.
set -eu
seconds=$1
shift
for fuzzer in "$@"; do
    name=$(basename "$fuzzer" | sed 's/^fuzz_//')
    corpus=build/fuzz/corpus_$name
    mkdir -p "$corpus"
    [ ! -d "tests/data/corpus_$name" ] || cp -n "tests/data/corpus_$name"/* "$corpus"/
    echo "fuzz: $name for $seconds s"
    "$fuzzer" -max_total_time="$seconds" -timeout=1 -rss_limit_mb=2048 -max_len=65536 -print_final_stats=1 \
        -artifact_prefix="build/fuzz/crash_${name}_" "$corpus" 2>"build/fuzz/$name.log" ||
        { tail -40 "build/fuzz/$name.log"; echo "fuzz: $name failed; the input is beside build/fuzz/$name.log"; exit 1; }
    sed -n 's/^stat::number_of_executed_units: */  inputs: /p; s/^stat::slowest_unit_time_sec: */  slowest, s: /p' "build/fuzz/$name.log"
done
