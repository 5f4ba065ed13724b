#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write the seeds of the fuzzers: corpus_safetensors for fuzz_safetensors and so on. Needs soundfile (PyPI)."""

import json
import os
import struct

import numpy as np
import soundfile

from make_model import make_denoiser, write_safetensors

HERE = os.path.dirname(os.path.abspath(__file__))


def path_of(corpus, name):
    os.makedirs(os.path.join(HERE, "corpus_" + corpus), exist_ok=True)
    return os.path.join(HERE, "corpus_" + corpus, name)


def write(corpus, name, content):
    with open(path_of(corpus, name), "wb") as file:
        file.write(content)


def make_safetensors():
    small = {"a": ("F32", np.zeros((2, 3), np.float32)), "b": ("F16", np.ones(3, np.float16)), "c": ("I8", np.ones((0, 2), np.int8))}
    write_safetensors(path_of("safetensors", "small"), small, {"ssm.config": "{}"})
    for name, header in {"empty": "{}", "hole": '{"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}',
                         "overlap": '{"x":{"dtype":"I8","shape":[2],"data_offsets":[0,2]},"y":{"dtype":"I8","shape":[2],"data_offsets":[1,3]}}',
                         "overflow": '{"x":{"dtype":"F64","shape":[4294967296,4294967296],"data_offsets":[0,0]}}'}.items():
        write("safetensors", name, struct.pack("<Q", len(header)) + header.encode() + bytes(8))


def read_config(model):
    with open(os.path.join(HERE, model + ".safetensors"), "rb") as file:
        header = file.read(struct.unpack("<Q", file.read(8))[0])
    return json.loads(header)["__metadata__"]["ssm.config"]


def make_configs():
    config = json.loads(make_denoiser(16, 1, "f16", 1, "tiny")[1]["ssm.config"])
    dump = lambda c: json.dumps(c, separators=(",", ":")).encode()
    write("model", "denoise", dump(config))
    write("model", "stft", dump(dict(config, task="regress", layers=config["layers"][:1])))
    write("model", "mask", dump(dict(config, layers=[config["layers"][0], {"type": "mask", "sigmoid": True}])))
    write("model", "mamba", dump(dict(config, task="backbone", hop=16, layers=[dict(config["layers"][2], discretisation="zoh")] * 2)))
    write("model", "conv", dump(dict(config, hop=32, layers=[
        {"type": "conv", "name": "backbone.layers.0.mixer.conv1d", "width": 32, "taps": 4, "silu": True}])))


    bare = {"format": 1, "rate": 100}
    write("model", "tag", dump(dict(bare, hop=1, channels=3, task="tag", exclusive=True, fields=["x", "y", "z"], units=["g"] * 3, layers=[
        {"type": "scale", "mean": [0.5, 0, -1], "std": [2, 1, 0.5]}, {"type": "pool", "hops": 20}, {"type": "softmax"}],
        labels=["rest", {"name": "walk", "on": 0.6, "off": 0.4}, {"name": "run", "mid": "/m/06h7j", "min_s": 0.1, "hold_s": 0.2}])))
    write("model", "ema", dump(dict(bare, hop=2, channels=2, task="regress", layers=[
        {"type": "pool", "kind": "ema", "hops": 5.5}, {"type": "sigmoid"}])))
    write("model", "tokens", b"T" + read_config("golden_tokens").encode())


def make_states():
    write("state", "true", b"\x02")
    write("state", "header", b"\x01" + bytes([8, 0, 2]) + bytes([16, 0, 1]))
    write("state", "nan", b"\x01" + bytes([50, 0, 0xC0, 51, 0, 0x7F]))
    write("state", "inf", b"\x01" + bytes([200, 3, 0x80, 201, 3, 0x7F]))
    write("state", "raw", b"SSMSTATE\1\0\0\0\x30\0\0\0" + bytes(32))


def make_readings():
    """The first byte chooses the format, the hop and the window (tests/fuzz_readings.c)."""
    write("readings", "csv", b"0time,ax,ay,az\n1,2,3,4\n1.01,,5,6\n1.03,7,8,9\n")
    write("readings", "dates", b"61;2;3;4\n2;3;4;5\n3;4;5;6\n4;5;6;7\n0.5;1;1;1\n2026-11-22T09:30:00.25Z;1;2;3\n")
    write("readings", "json", b'1{"t":1.5,"ax":1,"ay":-2e3,"az":null,"x":{"y":[1,"\\""]}}\n{"t":1.6,"ax":1,"ay":2,"az":3}\n')
    write("readings", "hops", b'3{"ax":1,"ay":2,"az":3}\n{"ax":1,"ay":2,"az":3}\n{"ax":1}\n')


def make_requests():
    write("http", "get", b"GET /metrics HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\nRange: bytes=1-2\r\n\r\n")
    write("http", "twice", b"GET /a?b=%41&c HTTP/1.1\r\nHost: x\r\nCookie: a=b; c\r\n\r\nHEAD /metrics HTTP/1.0\r\n\r\n")
    write("http", "chunks", b"POST /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nabcde\r\n0\r\nT: x\r\n\r\n")
    write("http", "body", b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nabcde")


def make_controls():
    """The first byte says how much of the rest is the second frame (tests/fuzz_control.c)."""
    write("control", "describe", b'\0{"op":"describe","id":1,"args":{}}')
    write("control", "list", b"\0\x82\xa2op\xabstream.list\xa2id\x01")
    write("control", "bypass", b'\0{"op":"stream.bypass","id":"a","args":{"stream":"p/0"}}')
    write("control", "open", b'\0{"op":"stream.open","id":2,"args":{"pipeline":{"q":{"source":{"type":"file","path":"x.wav"},"model":"m"}}}}')
    write("control", "close", b'\0{"op":"stream.close","id":3,"args":{"pipeline":"p","generation":1}}')
    write("control", "import", b'\x40{"op":"stream.import","id":4,"args":{"stream":"p"}}SSMSTATE\1\0\0\0')


def make_sounds():
    """A few samples in each container that libsndfile writes, and in the encodings that have a decoder of their own."""
    sound = np.sin(np.arange(120).reshape(60, 2) / 5) / 2
    wanted = [(major, soundfile.default_subtype(major)) for major in sorted(soundfile.available_formats()) if major not in ("RAW", "SD2")]
    wanted += [("WAV", "IMA_ADPCM"), ("WAV", "MS_ADPCM"), ("WAV", "FLOAT"), ("WAV", "ULAW"), ("WAV", "GSM610"), ("OGG", "OPUS"), ("CAF", "ALAC_16"),
               ("AIFF", "DWVW_16"), ("AU", "G723_24"), ("VOC", "ALAW"), ("XI", "DPCM_8"), ("MAT4", "DOUBLE"), ("WAVEX", "PCM_24")]
    for major, subtype in wanted:
        for columns in (2, 1):
            try:
                with open(path_of("sound_file", f"{major}-{subtype}".lower()), "wb") as file:
                    soundfile.write(file, sound[:, :columns], 16000, subtype, format=major)
                break
            except (soundfile.LibsndfileError, ValueError):
                os.remove(path_of("sound_file", f"{major}-{subtype}".lower()))


def make_ingests():
    """The first byte chooses format, channels and way, behind it are pieces: two bytes of length and `more` (tests/fuzz_ingest.c)."""
    piece = lambda content, more=0: struct.pack("<H", len(content) | more << 15) + content
    cut = piece(bytes(range(7))) + piece(b"") + piece(bytes(range(64, 97)))
    for form in range(4):
        for channels in range(2):
            write("ingest", f"socket-{form}-{channels}", bytes([form + 4 * channels]) + cut)
            write("ingest", f"message-{form}-{channels}", bytes([form + 4 * channels + 8]) + piece(b"topic/", 1) + cut)
    write("ingest", "nan", b"\0" + piece(struct.pack("<5f", 1, float("nan"), -float("inf"), 1e-40, 2)))
    greeting = b"\xff" + bytes(8) + b"\x7f\3\0NULL".ljust(23, b"\0") + bytes(32)
    ready = b"\5READY\x0bSocket-Type\0\0\0\4PUSH"
    frame = lambda flags, content: bytes([flags, len(content)]) + content
    write("ingest", "greeting", b"\x11" + greeting + frame(4, ready) + frame(1, b"topic") + frame(0, bytes(8)))
    write("ingest", "long", b"\x11" + greeting + frame(4, ready) + b"\2" + struct.pack(">Q", 1 << 62) + bytes(8))


if __name__ == "__main__":
    make_safetensors()
    make_configs()
    make_states()
    make_readings()
    make_requests()
    make_controls()
    make_sounds()
    make_ingests()
