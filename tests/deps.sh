#!/usr/bin/env bash
# SPDX-License-Identifier: MIT
# Install what building, testing and the demo need on Debian 12 or Ubuntu 24.04; do nothing when all of it is there.
set -eu

packages=(gcc make pkg-config clang libuv1-dev portaudio19-dev libzmq3-dev libyaml-dev libcmocka-dev libsndfile1-dev
    libkissfft-dev libjansson-dev libxxhash-dev libmicrohttpd-dev libudev-dev libspeexdsp-dev libmosquitto-dev bsdextrautils bc
    sox jackd2 pulseaudio pulseaudio-utils libasound2-plugins alsa-utils mosquitto mosquitto-clients openssl
    python3 python3-numpy python3-scipy python3-zmq python3-msgpack)
# msgpack for C changed its package's name between the two systems.
if apt-cache show libmsgpack-c-dev >/dev/null 2>&1; then packages+=(libmsgpack-c-dev); else packages+=(libmsgpack-dev); fi

# Sanitizers' and fuzzers' libraries, which clang only recommends.
clang=$(apt-cache depends clang 2>/dev/null | sed -n 's/.*Depends: clang-\([0-9]*\)$/\1/p' | head -1)
if apt-cache show "libclang-rt-$clang-dev" >/dev/null 2>&1; then packages+=("libclang-rt-$clang-dev"); fi

missing=()
for p in "${packages[@]}"; do
    [ "$(dpkg-query -W -f '${db:Status-Abbrev}' "$p" 2>/dev/null | cut -c1-2)" = ii ] || missing+=("$p")
done
[ ${#missing[@]} -gt 0 ] || exit 0

command -v apt-get >/dev/null || { echo "deps: not a Debian or Ubuntu system; please install: ${missing[*]}" >&2; exit 69; }
sudo=
if [ "$(id -u)" -ne 0 ]; then
    command -v sudo >/dev/null || { echo "deps: please install as root: apt-get install ${missing[*]}" >&2; exit 69; }
    sudo=sudo
fi
echo "deps: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
$sudo apt-get update -qq
# jackd2's question about real-time priority is answered no: nothing here needs it.
echo "jackd2 jackd/tweak_rt_limits boolean false" | $sudo debconf-set-selections 2>/dev/null || true
$sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
