# SPDX-License-Identifier: MIT
"""Other causal denoisers, each a function (N,) float at 16 kHz -> (N,) float.

peers() gives {name: function} of those this machine has: SpeexDSP's
preprocessor (libspeexdsp, through ctypes) and WebRTC's noise suppressor
(libwebrtc-audio-processing-dev 0.3; peer_webrtc.cpp is compiled on demand).
"""
import ctypes
import ctypes.util
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np

RATE = 16000
SPEEX_SET_DENOISE, SPEEX_SET_NOISE_SUPPRESS = 0, 18      # speex_preprocess.h


def _pcm(x):
    return np.clip(np.round(np.asarray(x) * 32768), -32768, 32767).astype(np.int16)


def speexdsp(hop_ms, suppress_db):
    """Speex's preprocessor with denoising only; suppress_db None: its default."""
    lib = ctypes.CDLL(ctypes.util.find_library("speexdsp"))
    lib.speex_preprocess_state_init.restype = ctypes.c_void_p
    hop = RATE * hop_ms // 1000

    def denoise(x):
        state = ctypes.c_void_p(lib.speex_preprocess_state_init(hop, RATE))
        for key, value in ((SPEEX_SET_DENOISE, 1), (SPEEX_SET_NOISE_SUPPRESS, suppress_db)):
            if value is not None:
                lib.speex_preprocess_ctl(state, key, ctypes.byref(ctypes.c_int(value)))
        pcm = np.pad(_pcm(x), (0, -len(x) % hop))
        for at in range(0, len(pcm), hop):
            lib.speex_preprocess_run(state, pcm[at:].ctypes.data_as(ctypes.c_void_p))
        lib.speex_preprocess_state_destroy(state)
        return pcm[:len(x)] / 32768.0

    return denoise


def build_webrtc():
    """Path of the compiled peer_webrtc, or None where it can't be built."""
    source = os.path.join(os.path.dirname(os.path.abspath(__file__)), "peer_webrtc.cpp")
    binary = os.path.join(tempfile.gettempdir(), f"peer_webrtc_{os.getuid()}")
    if os.path.exists(binary) and os.path.getmtime(binary) > os.path.getmtime(source):
        return binary
    package = "webrtc-audio-processing"
    if subprocess.run(["pkg-config", "--exists", package]).returncode:
        return None
    flags = subprocess.check_output(["pkg-config", "--cflags", "--libs", package], text=True)
    subprocess.run([os.environ.get("CXX", "c++"), "-O2", "-o", binary, source, *flags.split()],
                   check=True)
    return binary


def webrtc(binary, level):
    """WebRTC's noise suppressor at level 0 (low) to 3 (very high)."""
    def denoise(x):
        raw = subprocess.run([binary, str(level)], input=_pcm(x).tobytes(),
                             stdout=subprocess.PIPE, check=True).stdout
        return np.frombuffer(raw, np.int16) / 32768.0
    return denoise


def peers():
    """{name: denoiser}; says on stderr which can't be had."""
    found = {}
    if ctypes.util.find_library("speexdsp"):
        found["SpeexDSP 20 ms"] = speexdsp(20, None)
        found["SpeexDSP 20 ms -30 dB"] = speexdsp(20, -30)
        found["SpeexDSP 10 ms"] = speexdsp(10, None)
        found["SpeexDSP 10 ms -30 dB"] = speexdsp(10, -30)
    else:
        print("no SpeexDSP: install libspeexdsp1", file=sys.stderr)
    binary = build_webrtc() if shutil.which("pkg-config") else None
    if binary:
        found["WebRTC NS moderate"] = webrtc(binary, 1)
        found["WebRTC NS high"] = webrtc(binary, 2)
        found["WebRTC NS very high"] = webrtc(binary, 3)
    else:
        print("no WebRTC: install libwebrtc-audio-processing-dev", file=sys.stderr)
    return found
