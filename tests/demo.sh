#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# tests/demo.sh BUILD: the real daemon cleans tests/data/demo-noisy.flac at real-time pace while a subscriber listens;
# then the improvement, the latency and two pictures. Everything lands in build/demo.
set -eu
build=$1
out=build/demo
address=tcp://127.0.0.1:${SSM_DEMO_PORT:-5571}
mkdir -p "$out"
rm -f "$out"/*

cat >"$out/demo.yaml" <<YAML
version: 1
node: demo
publish: $address
pipelines:
  kitchen:
    source: {type: file, path: tests/data/demo-noisy.flac, paced: true}
    model: denoise-16k
    sinks:
      - {type: publish}
      - {type: file, path: $out/clean.wav}
YAML
"$build/ssm" check "$out/demo.yaml"

echo "a subscriber (Python) listens on $address; ssmd cleans tests/data/demo-noisy.flac at the pace of real time"
/usr/bin/python3 tests/demo.py listen "$address" "$out/latency.txt" &
subscriber=$!
trap 'kill $subscriber 2>/dev/null || true' EXIT
"$build/ssmd" --config "$out/demo.yaml"
wait "$subscriber"

for side in noisy clean; do
    file=tests/data/demo-noisy.flac
    [ $side = noisy ] || file=$out/clean.wav
    sox "$file" -n remix 1 rate 16k spectrogram -x 900 -y 257 -z 80 -t "$side" -o "$out/$side.png"
done
/usr/bin/python3 tests/demo.py score tests/data/demo-clean.flac tests/data/demo-noisy.flac "$out/clean.wav" "$out/latency.txt"
echo "  pictures                 $out/noisy.png  $out/clean.png"
