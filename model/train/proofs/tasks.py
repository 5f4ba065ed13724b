# SPDX-License-Identifier: MIT
"""The two synthetic tasks of the Mamba paper (arXiv 2312.00752, section 4.1), made afresh on the device for every batch; and
the bytes of a text.

A task is a function (batch, length, device, generator) -> tokens (batch, steps), target (batch, k): what must be said at
the last k steps. Nothing in it synchronises, so that it can be captured in a CUDA graph.
"""
import numpy as np
import torch

VOCABULARY = 16
NOISE, MARK = 0, VOCABULARY - 1     # of selective copying: what to pass over, what asks for an answer
KEPT = 16                           # tokens to memorise
TRIGGER = VOCABULARY - 1            # of induction heads


def selective_copying(batch, length, device, generator):
    """KEPT tokens at random places among `length` steps of noise, then KEPT marks: at each, the next token in order."""
    draw = dict(device=device, generator=generator)
    kept = torch.randint(1, MARK, (batch, KEPT), **draw)
    places = torch.rand(batch, length, **draw).topk(KEPT, 1).indices.sort(1).values
    tokens = torch.full((batch, length + KEPT), NOISE, dtype=torch.int64, device=device)
    tokens[:, length:] = MARK
    return tokens.scatter(1, places, kept), kept


def induction_heads(batch, length, device, generator):
    """Random tokens with one trigger among them, and the trigger again at the end: what came after it the first time?"""
    draw = dict(device=device, generator=generator)
    tokens = torch.randint(0, TRIGGER, (batch, length), **draw)
    place = torch.randint(0, length - 2, (batch, 1), **draw)
    tokens.scatter_(1, place, TRIGGER)
    target = tokens.gather(1, place + 1)
    tokens[:, -1] = TRIGGER
    return tokens, target


class Text:
    """Stretches of a file's bytes from random places; what must be said at each step is the next byte."""

    def __init__(self, path, device):
        self.bytes = torch.from_numpy(np.fromfile(path, np.uint8)).to(device)

    def __call__(self, batch, length, device, generator):
        first = torch.randint(0, len(self.bytes) - length - 1, (batch, 1), device=device, generator=generator)
        stretch = self.bytes[first + torch.arange(length + 1, device=device)].long()
        return stretch[:, :-1], stretch[:, 1:]


TASKS = {"selective-copying": selective_copying, "induction-heads": induction_heads}
