#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Who may know whom (CONTRIBUTING.md, "Rooms"), and one outside library in one file. Prints each breach; exits 1 on any.
set -u
bad=0
breach() { echo "layers: $*"; bad=1; }

# room: the rooms it may include from
may() {
    case $1 in
    config) echo "config dsp" ;;
    dsp) echo "dsp" ;;
    kernels) echo "kernels" ;;
    model) echo "model dsp kernels" ;;
    daemon) echo "daemon model dsp kernels config" ;;
    clients) echo "clients daemon model dsp kernels config" ;;
    esac
}
for room in config dsp kernels model daemon clients; do
    allowed=$(may $room)
    while IFS=: read -r file line text; do
        target=$(sed -n 's/.*#include "\([a-z]*\)\/.*/\1/p' <<<"$text")
        [ -n "$target" ] || { breach "$file:$line: include from the root, not $text"; continue; }
        grep -qw "$target" <<<"$allowed" || breach "$file:$line: $room may not know $target"
    done < <(grep -rnE '#include "' $room --include='*.c' --include='*.h' --include='*.cu' --include='*.cuh' 2>/dev/null)
done

# header -> the only files that may include it
only() {
    header=$1; shift
    for file in $(grep -rlE "#include <$header>" config dsp kernels model daemon clients --include='*.c' --include='*.h' --include='*.cu' --include='*.cuh' 2>/dev/null); do
        grep -qw -- "$file" <<<"$*" || breach "$file: <$header> belongs to $*"
    done
}
only uv.h daemon/loop.c
only portaudio.h daemon/portaudio.c
only libudev.h daemon/names.c
only zmq.h daemon/cert.c daemon/gate.c daemon/publish.c daemon/pull.c daemon/router.c clients/connection.c clients/subscriber.c clients/caller.c
only microhttpd.h daemon/http.c
only mosquitto.h daemon/mqtt.c
only yaml.h config/document.c
only msgpack.h daemon/wire.c
only sndfile.h dsp/sound_file.c
only kissfft/kiss_fft.h dsp/stft.c
only speex/speex_echo.h dsp/echo.c
only xxhash.h model/digest.c
only 'cuda.*' kernels/cuda/*.* model/cuda/*.*
only dlfcn.h model/backend_cuda.c
# One clock for all, which tests replace.
for file in $(grep -rlE 'clock_gettime|gettimeofday|[^a-z_]time\(NULL\)' config dsp kernels model daemon clients --include='*.c' 2>/dev/null); do
    [ "$file" = dsp/clock.c ] || breach "$file: asks the system for the time; dsp/clock.h tells it"
done
[ $bad -eq 0 ] && echo "layers: clean"
exit $bad
