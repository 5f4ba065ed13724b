#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""What a tagger's training stands on: its targets, its loss and its clock. Needs PyTorch."""
import math
import os
import sys
import tempfile
import time
import types
import wave

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
    import tagger
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


def an_encoder_without_phase_reads_magnitudes_only():
    torch.manual_seed(1)
    model = tagger.Tagger(dict(d_model=8, n_layer=1, labels=("a",), phase=False))
    model(torch.randn(1, 1600)).sum().backward()
    for values in (model.encoder.weight, model.encoder.weight.grad):
        assert values[:, :161].abs().max() > 0 and values[:, 161:].abs().max() == 0


def dropout_is_for_training_only():
    model = tagger.Tagger(dict(d_model=8, n_layer=1, labels=("a",), dropout=0.5))
    x = torch.randn(1, 1600)
    torch.manual_seed(1)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


def with_pack(rows, use):
    """use(folder) of a pack with (kind, label, fold) of half a second each."""
    with tempfile.TemporaryDirectory() as folder:
        with open(os.path.join(folder, "index.csv"), "w") as index:
            index.write("path,kind,label,source,fold\n")
            for i, row in enumerate(rows):
                with wave.open(os.path.join(folder, "%d.wav" % i), "wb") as file:
                    file.setparams((1, 2, 16000, 0, "NONE", ""))
                    file.writeframes(np.full(8000, i + 1, np.int16).tobytes())
                index.write("%d.wav,%s,%s,x,%s\n" % (i, row[0], row[1], row[2]))
        return use(folder)


def a_fold_that_is_left_out_is_only_tested_on():
    rows = [("speech", "", ""), ("noise", "", ""), ("noise", "rain", "3"), ("noise", "rain", "4"), ("noise", "wind", "")]
    pool = with_pack(rows, lambda folder: tag_mix.Pool([folder], torch.device("cpu"), "4"))
    assert [(label, int(x[0])) for label, x in pool.test] == [("rain", 4)]
    assert sorted(pool.noise.audio[pool.noise.start].tolist()) == [2, 3, 5] and pool.noise_labels == ["rain", "wind"]


def a_clip_is_ranked_by_its_loudest_half_second_of_a_label():
    class Fixed:
        config = dict(labels=("rain", "wind"))
        eval = train = lambda self: None

        def __call__(self, x, scan):
            loud = x.abs().reshape(len(x), -1, 160).mean(-1) > 0.01
            return torch.stack((loud * 8.0 - 4, loud * -8.0 + 4), -1)
    sound = lambda n: np.full(n, 3000, np.int16)
    clips = [("rain", sound(80000)), ("wind", sound(4000)), ("rain", sound(6000))]
    assert abs(tag.precision(Fixed(), clips, None, "cpu") - 1.0) < 1e-6
    assert tag.precision(Fixed(), [("wind", sound(80000)), ("rain", sound(4000))], None, "cpu") == 0.5


CASES = [a_tone_is_speech_while_it_sounds_and_a_tenth_of_a_second_longer, soft_speech_is_speech_to_some_depths_only,
         answers_may_be_late_by_what_a_recipe_looks_ahead, labels_trained_beside_others_count_half_and_are_not_told,
         a_bands_share_is_what_of_it_is_speech, what_a_training_was_stopped_for_does_not_count,
         a_training_ends_by_until_at_the_latest, an_encoder_without_phase_reads_magnitudes_only, dropout_is_for_training_only,
         a_fold_that_is_left_out_is_only_tested_on, a_clip_is_ranked_by_its_loudest_half_second_of_a_label]


def main():
    if torch is None:
        print("skipped: %d cases that need PyTorch" % len(CASES))
    return script.run(*(CASES if torch else ()))


if __name__ == "__main__":
    sys.exit(main())
