#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Print what a running ssmd publishes, or read it in your own program.

    apt install python3-zmq python3-msgpack
    ssm_subscribe.py [TOPIC [ADDRESS [SERVER_KEY [KEY_FILE]]]]

    import ssm_subscribe
    for topic, header, samples in ssm_subscribe.messages("audio/studio/mic/"): ..."""

import array
import math
import os
import sys

try:
    import msgpack
    import zmq
    import zmq.auth
except ImportError as missing:
    if __name__ != "__main__":
        raise
    sys.exit("%s: apt install python3-zmq python3-msgpack" % missing)


def decode(topic, header, payload):
    """One message's three frames -> its topic, its header as a dict, and samples (array of floats), a dict, or bytes."""
    header = msgpack.unpackb(header)
    if header["dt"] == "f32le":
        payload = array.array("f", payload)
    elif header["dt"] == "msgpack":
        payload = msgpack.unpackb(payload)
    return topic.decode(), header, payload


def speak_curve(socket, server_key, key=None):
    """Before connect: encrypt, with a daemon whose public key, or a file of it, is server_key. key: our own file, NAME_secret as
    `ssm keys` makes it; without it one for this once."""
    if os.path.exists(server_key):
        socket.curve_serverkey = zmq.auth.load_certificate(server_key)[0]
    else:
        socket.curve_serverkey = server_key.encode()
    pair = zmq.auth.load_certificate(key) if key else zmq.curve_keypair()
    socket.curve_publickey, socket.curve_secretkey = pair


def messages(topic="audio/", address="tcp://127.0.0.1:5571", server_key=None, key=None):
    """Every message whose topic begins with `topic`, for ever. A daemon that comes later, or again, is connected to."""
    socket = zmq.Context.instance().socket(zmq.SUB)
    for option, value in ((zmq.TCP_KEEPALIVE, 1), (zmq.TCP_KEEPALIVE_IDLE, 1), (zmq.TCP_KEEPALIVE_INTVL, 1), (zmq.TCP_KEEPALIVE_CNT, 3)):
        socket.setsockopt(option, value)  # before connect: later they would not count
    if server_key:
        speak_curve(socket, server_key, key)
    socket.connect(address)
    socket.subscribe(topic)
    while True:
        yield decode(*socket.recv_multipart())


def level_db(samples):
    """Root mean square in dB below full scale."""
    return 10 * math.log10(sum(x * x for x in samples) / max(len(samples), 1) + 1e-20)


def main(words):
    if len(words) > 4 or any(word.startswith("-") for word in words[:1]) or "://" in "".join(words[:1]):
        print(__doc__)
        return 0 if words[0] in ("-h", "--help") else 64
    due = {}  # (boot, topic) -> the number that comes next
    for topic, header, payload in messages(*words):
        number, key = header["seq"], (header["boot"], topic)
        if number > due.get(key, number):
            print(f"{topic}  LOST: messages {due[key]} to {number - 1} never came here")
        due[key] = number + 1
        scores = topic.startswith("tags/")
        told = payload if not isinstance(payload, array.array) else \
            " ".join(f"{p:.2f}" for p in payload) if scores else f"{level_db(payload):6.1f} dB"
        print(f"{topic}  #{number}  {told}  {header['pub'] / 1e6:.1f} ms after capture", flush=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:  # as of head; nor is there anybody to be told at the end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (zmq.ZMQError, OSError, ValueError) as error:  # an address, a key, a full disk
        sys.exit(f"ssm_subscribe.py {' '.join(sys.argv[1:])}: {error}")
