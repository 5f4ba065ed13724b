#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Microphone in, clean out, through real PortAudio: JACK with its dummy driver, and PulseAudio null sinks through ALSA.
# Needs no sound card. Last line: 'N passed, N failed'.
set -u
ssmd=$(realpath "${SSMD:-build/release/ssmd}")
model=$(realpath tests/data/tiny-denoise.safetensors)
dir=$(mktemp -d /tmp/ssmd-audio-XXXXXX)
passed=0 failed=0 started=()
trap 'for p in "${started[@]}"; do kill "$p" 2>/dev/null; done; wait 2>/dev/null; rm -rf "$dir"' EXIT
export HOME=$dir XDG_RUNTIME_DIR=$dir JACK_NO_AUDIO_RESERVATION=1 JACK_DEFAULT_SERVER=ssmd-$$
cd "$dir" || exit 1

result() { # name, then 0 for good
    if [ "$2" -eq 0 ]; then passed=$((passed + 1)); echo "[       OK ] $1"; else failed=$((failed + 1)); echo "[  FAILED  ] $1"; cat ./*.log; fi
}
have() { for tool in "$@"; do command -v "$tool" >/dev/null || { echo "skipped: no $tool"; return 1; }; done; }
wait_for() { for _ in $(seq 100); do eval "$1" && return 0; sleep 0.05; done; return 1; }
loud() { # file: is its rms amplitude beyond 0.05?
    sox "$1" -n stat 2>&1 | awk '/RMS.*amplitude/ {exit !($3 > 0.05)}'
}
rate_of() { soxi -r "$1" 2>/dev/null; }
seconds_of() { soxi -D "$1" 2>/dev/null | cut -d. -f1; }

config() { # source device, sink device, channels
    cat >ssmd.yaml <<END
version: 1
node: t
publish: ""
pipelines:
  mic:
    source: {type: audio, device: "$1", channels: [$3]}
    model: $model
    sinks: [{type: audio, device: "$2"}, {type: file, path: mic.wav}]
END
}
run_for() { # seconds; leaves ssmd's exit code in $code
    "$ssmd" --config ssmd.yaml 2>ssmd.log & daemon=$!
    started+=("$daemon")
    wait_for "grep -q ready ssmd.log"
    sleep "$1"
    kill -TERM $daemon 2>/dev/null
    wait $daemon
    code=$?
}

start_jack() { # leaves its process in $server
    jackd --no-realtime -d dummy -r 48000 -p 480 >jackd.log 2>&1 & server=$!
    started+=($!)
    sleep 1.5
}

jack() {
    have jackd sox || return
    start_jack
    config JACK:system JACK:system 0
    run_for 3
    [ "$code" -eq 0 ] && grep -q "drained.* 0 samples lost" ssmd.log && [ "$(rate_of mic.wav)" = 48000 ] &&
        [ "$(seconds_of mic.wav)" -ge 2 ]
    result samples_flow_through_jack $?
    "$ssmd" --config ssmd.yaml 2>ssmd.log & daemon=$!
    started+=("$daemon")
    wait_for "grep -q ready ssmd.log"
    sleep 1
    kill -KILL $server
    wait $server 2>/dev/null
    wait_for "[ \$(grep -c 'is lost' ssmd.log) = 2 ]" && start_jack && wait_for "[ \$(grep -c 'is back' ssmd.log) = 2 ]"
    code=$?
    kill -TERM $daemon
    wait $daemon && [ $code = 0 ] && grep -q device_lost ssmd.log
    result microphone_and_player_come_back_with_jack $?
    kill $server
    wait $server 2>/dev/null
}

pulse() {
    have pulseaudio paplay parecord sox || return
    cat >.asoundrc <<'END'
pcm.room { type pulse device "room.monitor" hint { show on description "room" } }
pcm.speaker { type pulse device "out" hint { show on description "speaker" } }
END
    pulseaudio -n --daemonize=no --exit-idle-time=-1 --disable-shm=yes -L "module-null-sink sink_name=room" \
        -L "module-null-sink sink_name=out" -L module-native-protocol-unix >pulse.log 2>&1 & started+=($!)
    wait_for "pactl info >/dev/null 2>&1" || { echo "skipped: pulseaudio does not start here"; return; }
    sox -n -r 44100 -c 2 tone.wav synth 10 sine 500 vol 0.25
    # A null sink makes sound in pieces as long as its player's latency: 2 s if nobody asks for less.
    paplay --latency-msec=20 --device=room tone.wav & started+=($!)
    parecord --latency-msec=20 --device=out.monitor --file-format=wav heard.wav & started+=($!); local recorder=$!
    config ALSA:room ALSA:speaker 0,1
    run_for 3
    kill -INT $recorder
    wait $recorder 2>/dev/null
    [ "$code" -eq 0 ] && loud mic.wav && [ "$(soxi -c mic.wav)" = 2 ]
    result a_pulseaudio_microphone_reaches_a_file $?
    loud heard.wav
    result and_the_loudspeaker $?
}

wrong_name() {
    have jackd || return
    config no-such-device default 0
    run_for 0 2>/dev/null
    [ "$code" -eq 69 ] && grep -q "ssm devices" ssmd.log
    result a_device_that_is_not_there_is_told $?
}

jack
pulse
wrong_name
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
