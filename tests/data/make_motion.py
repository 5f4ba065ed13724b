#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Write demo-motion.csv, beside this script: 10 s of a made-up smart watch, 10 readings a second in the units of model motion. Its
wearer stands for 4 s and walks for 6: a step of one foot a second, with means and sizes that walks of BasicMotions have."""

import math
import os
import random

STAND = [(0, 0.2), (0, 0.3), (0, 0.2), (0, 0.2), (0, 0.1), (0, 0.2)]  # mean, deviation
WALK = [(0.8, 1.3), (0, 3.2), (-0.4, 1), (0, 0.9), (0, 0.4), (0, 1.4)]
PHASE = [0, 2.1, 0.7, 1.3, 4.0, 5.1]


def reading(draw, i):
    for k, (mean, deviation) in enumerate(STAND if i < 40 else WALK):
        swing = 0 if i < 40 else 1.2 * math.sin(2 * math.pi * i / 10 + PHASE[k]) + 0.5 * math.sin(4 * math.pi * i / 10 + 2 * PHASE[k])
        yield mean + deviation * (swing + draw.gauss(0, 1 if i < 40 else 0.3))


def main():
    draw = random.Random(5)
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "demo-motion.csv"), "w") as file:
        file.write("t,ax,ay,az,gx,gy,gz\n")
        for i in range(100):
            file.write("%.1f," % (i / 10) + ",".join("%.2f" % value for value in reading(draw, i)) + "\n")


if __name__ == "__main__":
    main()
