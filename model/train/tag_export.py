#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""A checkpoint of tag.py or sensor.py -> a model file.

    python3 tag_export.py RUN/vad.pt vad.safetensors --version 1 --licence L --trained T [--events EVENTS.json] [--int8]

EVENTS.json: {label: {"on": .., "off": .., "min_s": .., "hold_s": ..}}, chosen on validation data; "*" is for every label.
AudioSet ids are put beside the labels that are AudioSet's. --without leaves labels out that didn't turn out well.
"""
import argparse
import json
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import torch  # noqa: E402

import tagger  # noqa: E402

# the AudioSet ontology's closest class
AUDIOSET = {
    "speech": "/m/09x0r", "music": "/m/04rlf", "silence": "/m/028v0c", "aircraft": "/m/0k5j", "alarm": "/m/07pp_mv",
    "baby cry": "/t/dd00002", "bell": "/m/0395lw", "bird": "/m/015p6", "breathing": "/m/0lyf6", "car horn": "/m/0912c9",
    "cat": "/m/01yrx", "chainsaw": "/m/01j4z9", "clapping": "/m/0l15bq", "clock": "/m/01x3z", "cough": "/m/01b_21",
    "dog": "/m/0bt9lr", "engine": "/m/02mk9", "fire": "/m/02_41", "fireworks": "/m/0g6b5", "footsteps": "/m/07pbtc8",
    "frog": "/m/09ld4", "glass": "/m/039jq", "hubbub": "/m/07qfr4h", "insect": "/m/03vt0", "knock": "/m/07r4wb8",
    "livestock": "/m/0ch8v", "rain": "/m/06mb1", "siren": "/m/03kmc9", "sneeze": "/m/01hsr_", "snoring": "/m/01d3sd",
    "thunderstorm": "/m/0jb2l", "train": "/m/07jdr", "typing": "/m/0316dw", "vacuum cleaner": "/m/0d31p",
    "water": "/m/0838f", "wind": "/m/03m9d0z"}


def label_rows(config, events):
    rows = []
    for name in config["labels"]:
        row = dict(name=name)
        if config["front"] == "stft" and name in AUDIOSET:
            row["mid"] = AUDIOSET[name]
        rows.append(dict(row, **{**events.get("*", {}), **events.get(name, {})}))
    return rows


def drop_labels(s, names):
    """The checkpoint without these labels' rows of the head."""
    config = s["config"]
    keep = [i for i, name in enumerate(config["labels"]) if name not in names]
    config["labels"] = [config["labels"][i] for i in keep]
    for name in ("head.weight", "head.bias"):
        s["tensors"][name] = s["tensors"][name][keep]


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("checkpoint")
    p.add_argument("out")
    p.add_argument("--name")
    p.add_argument("--version", default="1")
    p.add_argument("--licence", default="MIT")
    p.add_argument("--trained", default="")
    p.add_argument("--events")
    p.add_argument("--without", nargs="+", default=[], metavar="LABEL")
    p.add_argument("--int8", action="store_true")
    a = p.parse_args()
    s = torch.load(a.checkpoint, map_location="cpu")
    drop_labels(s, a.without + [name for name in s["config"]["labels"] if name.startswith("~")])
    events = {}
    if a.events:
        with open(a.events) as f:
            events = json.load(f)
    name = a.name or os.path.basename(a.out).split(".")[0]
    description = tagger.describe(s["config"], name, a.version, a.licence, a.trained, label_rows(s["config"], events),
                                  **s.get("more", {}))
    tagger.write_model(a.out, s["tensors"], description, a.int8)


if __name__ == "__main__":
    main()
