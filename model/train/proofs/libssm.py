# SPDX-License-Identifier: MIT
"""libssm from Python, as far as the proofs and tests/eval need it: streams step by step and through the scan."""
import ctypes
import os

import numpy as np

_ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "..")
PATH = os.environ.get("SSM_LIBRARY", os.path.join(_ROOT, "build", "release", "libssm.so"))


class _Error(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("text", ctypes.c_char * 512)]


class _Options(ctypes.Structure):
    _fields_ = [("device", ctypes.c_char_p), ("streams", ctypes.c_int), ("threads", ctypes.c_int),
                ("max_hops", ctypes.c_int), ("precision", ctypes.c_char_p), ("copy_s", ctypes.c_float)]


class _Hop(ctypes.Structure):
    _fields_ = [("stream", ctypes.c_uint64), ("in_", ctypes.c_void_p), ("out", ctypes.c_void_p), ("count", ctypes.c_int),
                ("elapsed", ctypes.c_float), ("status", ctypes.c_int), ("blown", ctypes.c_bool)]


def _load():
    library = ctypes.CDLL(PATH)
    library.ssm_open.restype = ctypes.c_void_p
    library.ssm_open.argtypes = [ctypes.c_char_p, ctypes.POINTER(_Options), ctypes.POINTER(_Error)]
    library.ssm_close.argtypes = [ctypes.c_void_p]
    library.ssm_stream_open.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
    library.ssm_stream_reset.argtypes = [ctypes.c_void_p, ctypes.c_uint64]
    library.ssm_step.argtypes = [ctypes.c_void_p, ctypes.POINTER(_Hop), ctypes.c_int]
    library.ssm_scan.argtypes = [ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p,
                                 ctypes.c_size_t, ctypes.c_void_p]
    return library


class Engine:
    """`streams` streams of one model that takes one number a hop and gives `outputs`."""

    def __init__(self, path, outputs, streams=1, device="cpu", threads=1):
        self.library, error = _load(), _Error()
        options = _Options(device=device.encode(), streams=streams, threads=threads)
        self.engine = self.library.ssm_open(os.path.abspath(path).encode(), ctypes.byref(options), ctypes.byref(error))
        if not self.engine:
            raise RuntimeError(error.text.decode())
        self.given, self.said = np.zeros((streams, 1), np.float32), np.zeros((streams, outputs), np.float32)
        self.hops = (_Hop * streams)()
        for i, hop in enumerate(self.hops):
            stream = ctypes.c_uint64()
            self.library.ssm_stream_open(self.engine, ctypes.byref(stream))
            hop.stream, hop.count = stream.value, 1
            hop.in_, hop.out = self.given[i:].ctypes.data, self.said[i:].ctypes.data

    def close(self):
        self.library.ssm_close(self.engine)

    def reset(self):
        for hop in self.hops:
            self.library.ssm_stream_reset(self.engine, hop.stream)

    def step(self, tokens):
        """A token for each stream -> (streams, outputs), overwritten by the next step."""
        self.given[:, 0] = tokens
        if self.library.ssm_step(self.engine, self.hops, len(self.hops)) != len(self.hops):
            raise RuntimeError("a step failed: status %d" % self.hops[0].status)
        return self.said

    def scan(self, tokens, stream=0, elapsed=None):
        """A whole sequence of the one stream, tokens (T,) or hops (T, inputs), elapsed (T,) or none -> (T, outputs)."""
        given = np.ascontiguousarray(tokens, np.float32)
        times = None if elapsed is None else np.ascontiguousarray(elapsed, np.float32)
        said = np.empty((len(given), self.said.shape[1]), np.float32)
        status = self.library.ssm_scan(self.engine, self.hops[stream].stream, given.ctypes.data, said.ctypes.data,
                                       None if times is None else times.ctypes.data, len(given), None)
        if status:
            raise RuntimeError("a scan failed: status %d" % status)
        return said
