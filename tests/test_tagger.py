#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a tagger's training stands on: its targets, its loss and its clock. Needs PyTorch."""
import math
import os
import sys
import time
import types

import script

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "model", "train"))

try:
    import torch
    import layers
    import numpy as np
    import tag
    import tag_export
    import tag_mix
except ImportError:
    torch = None


def a_tone_is_speech_while_it_sounds_and_a_tenth_of_a_second_longer():
    x = torch.sin(torch.arange(16000) * 0.3)[None] * 0.1
    x[:, 4800:] = 0.0
    share = tag_mix.speech_activity(x)[0]
    assert share.tolist() == [1.0] * 40 + [0.0] * 60, share


def soft_speech_is_speech_to_some_depths_only():
    x = torch.sin(torch.arange(16000) * 0.3)[None] * 0.1
    x[:, 8000:] *= 10 ** (-30 / 20)
    share = tag_mix.speech_activity(x)[0]
    assert share[30] == 1.0 and share[90] == 0.5, share


def answers_may_be_late_by_what_a_recipe_looks_ahead():
    target = (torch.arange(40) % 7 < 3).float()[None, :, None]
    late = torch.cat((torch.zeros(1, 4, 1), 20 * target[:, :-4] - 10), 1)
    losses = [float(tag.loss_of(late, target, torch.ones_like(target), False, look, torch.ones(1))) for look in (0, 4)]
    assert losses[1] < 1e-4 < 1 < losses[0], losses


def labels_trained_beside_others_count_half_and_are_not_told():
    counts = tag.importance(("speech", "~band 0", "~band 1"), "cpu").tolist()
    assert np.allclose(counts, [2 / 3, 1 / 6, 1 / 6]), counts
    assert np.allclose(tag.importance(("a", "b"), "cpu").tolist(), 0.5)
    s = dict(config=dict(labels=["speech", "~band 0"]), tensors={"head.weight": torch.ones(2, 3), "head.bias": torch.ones(2)})
    tag_export.drop_labels(s, ["~band 0"])
    assert s["config"]["labels"] == ["speech"] and s["tensors"]["head.weight"].shape == (1, 3)


def a_bands_share_is_what_of_it_is_speech():
    voice = types.SimpleNamespace(window=layers.sqrt_hann(320), bands=tag_mix.bands(16, 161, "cpu"))
    t = torch.arange(16000) / 16000
    low, high = 0.1 * torch.sin(2 * math.pi * 500 * t)[None], 0.1 * torch.sin(2 * math.pi * 6000 * t)[None]
    share = tag_mix.Voice.share(voice, low, high + low)[0, 10:]
    at = [int(voice.bands[round(hz / 50)].argmax()) for hz in (500, 6000)]
    assert abs(share[:, at[0]] - 0.5).max() < 0.01 and share[:, at[1]].max() < 0.01, share[5]
    assert torch.equal(voice.bands[2:160].sum(1), torch.ones(158))


def with_clock(minutes, until, looks):
    """What a clock made at 0 s says at these times."""
    now = [0.0]
    tag.time = types.SimpleNamespace(time=lambda: now[0])
    try:
        clock, said = tag.Clock(minutes, until), []
        for now[0] in looks:
            said.append(clock.gone())
        return said
    finally:
        tag.time = time


def what_a_training_was_stopped_for_does_not_count():
    assert with_clock(1, math.inf, (6, 12, 72, 78)) == [0.1, 0.2, 0.2, 0.3]


def a_training_ends_by_until_at_the_latest():
    assert with_clock(10, 100, (5, 10, 60, 65, 75)) == [0.05, 0.1, 0.2, 0.3, 0.5]
    assert with_clock(10, 100, range(0, 101, 5))[-1] >= 1


CASES = [a_tone_is_speech_while_it_sounds_and_a_tenth_of_a_second_longer, soft_speech_is_speech_to_some_depths_only,
         answers_may_be_late_by_what_a_recipe_looks_ahead, labels_trained_beside_others_count_half_and_are_not_told,
         a_bands_share_is_what_of_it_is_speech, what_a_training_was_stopped_for_does_not_count,
         a_training_ends_by_until_at_the_latest]


def main():
    if torch is None:
        print("skipped: %d cases that need PyTorch" % len(CASES))
    return script.run(*(CASES if torch else ()))


if __name__ == "__main__":
    sys.exit(main())
