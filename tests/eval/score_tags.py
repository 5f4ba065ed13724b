# SPDX-License-Identifier: MIT
"""Key words, noise classes and music: what tag-audio or key-words hears in recordings it was not trained on.

    score_tags.py --model MODEL.safetensors --root SOURCES --parts PART... --pack PACK... [--events OUT.json]

Half of what is held out chooses the thresholds (--events writes them for tag_export.py), the other half is reported:
of the speech of the parts that PACK (tag_pack.py's folder) doesn't hold, every other clip; of ESC-50's fold 5 the recordings
with an even number. A key word of the manifest's test split counts when its label crosses its threshold by 0.7 s after the
clip; a false alarm is each time one does in speech without key words.
"""
import argparse
import glob
import json
import os
import sys

import numpy as np

HERE = os.path.dirname(os.path.abspath(__file__))
for folder in ("../../model/train", "../../model/train/proofs"):
    sys.path.insert(0, os.path.join(HERE, folder))
import libssm  # noqa: E402
import reference  # noqa: E402
import tag_pack  # noqa: E402
from clips import read_clip  # noqa: E402

RATE, HOP = 16000, 160
ALARMS_PER_WORD = 2.5           # an hour, at most, where thresholds are chosen
LEAST, MOST = 0.3, 0.98
CONDITIONS = (None, 20, 10, 5)  # dB of a key word over noise; None: silence


class Model:
    def __init__(self, path):
        self.labels = [row["name"] for row in reference.read_safetensors(path)[0]["labels"]]
        self.engine = libssm.Engine(path, len(self.labels))
        self.rng = np.random.default_rng(7)

    def __call__(self, x):
        """Scores (hops, labels) of x from the zero state; half a step of 16-bit dither stands in digital silence."""
        x = x[:len(x) // HOP * HOP] + self.rng.uniform(-0.5, 0.5, len(x) // HOP * HOP) / 32768
        self.engine.reset()
        return self.engine.scan(x.reshape(-1, HOP))


def begins(p, on, off):
    """How often p goes over `on`, having been below `off` before."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], (p >= off).astype(np.int8), [0]))))
    return sum(p[a:b].max() >= on for a, b in zip(edges[::2], edges[1::2]))


def with_noise(x, noise, snr_db, rng):
    """x with a stretch of noise at an SNR over the loud half of x's 10 ms levels."""
    e = np.square(x[:len(x) // HOP * HOP].reshape(-1, HOP)).mean(1)
    begin = rng.integers(max(1, len(noise) - len(x)))
    y = np.resize(noise[begin:begin + len(x)], len(x))
    loud = e[e > np.median(e)].mean()
    return x + y * np.sqrt(loud / max(np.square(y).mean(), 1e-9)) * 10 ** (-snr_db / 20)


# ---- key words ------------------------------------------------------------------------------------------------------

def word_clips(root):
    """[(word, samples)] of the test split, each after 1 s of silence and before 0.7 s."""
    out = []
    for r in tag_pack.read_csv(os.path.join(root, "shared/manifest.csv")):
        if r["path"].startswith("tagging/wakewords/") and r["split"] == "test":
            x = read_clip(os.path.join(root, "shared", r["path"]))
            out.append((r["speaker_or_class"], np.concatenate((np.zeros(RATE), x, np.zeros(7 * RATE // 10)))))
    return out


def unheard_speech(parts, packs):
    """Speech clips of the parts that are not in the packs; Mycroft's are key words, "computer" among them."""
    used = {(r["source"], r["name"], "%.2f" % float(r["seconds"]))
            for pack in packs for r in tag_pack.read_csv(os.path.join(pack, "index.csv"))}
    return [c for c in tag_pack.part_clips(parts) if c[0] == "speech" and c[1] != "mycroft"
            and (c[1], c[2], "%.2f" % c[4]) not in used]


def heard_words(model, clips, noises, rng):
    """[(word, its largest score in each of CONDITIONS)]"""
    out = []
    for word, x in clips:
        noisy = [x if snr is None else with_noise(x, noises[rng.integers(len(noises))], snr, rng) for snr in CONDITIONS]
        out.append((word, [model(y)[:, model.labels.index(word)].max() for y in noisy]))
    return out


def score_speech(model, words, speech, hours):
    """Scores of the words in two halves of speech that has none: [[(hops, words)]], hours of each half."""
    scores, seconds = [[], []], [0.0, 0.0]
    for i, clip in enumerate(speech):
        if min(seconds) > 1800 * hours:
            break
        x = read_clip(clip[3])
        scores[i % 2].append(model(x)[:, [model.labels.index(w) for w in words]])
        seconds[i % 2] += len(x) / RATE
    return scores, [s / 3600 for s in seconds]


def score_words(model, clips, parts, packs, noises, hours, log):
    rng = np.random.default_rng(3)
    words = sorted({w for w, _ in clips})
    heard = heard_words(model, clips, noises, rng)
    speech = unheard_speech(parts, packs)
    rng.shuffle(speech)
    scores, heard_hours = score_speech(model, words, speech, hours)
    events, found, false = {}, [], []
    snrs = " | ".join("%d dB" % c for c in CONDITIONS[1:])
    log("| key word | threshold | in silence | %s | clips | false alarms an hour |" % snrs)
    log("|---" * (4 + len(CONDITIONS)) + "|")
    for k, w in enumerate(words):
        alarms = lambda half, on: sum(begins(p[:, k], on, 0.5 * on) for p in scores[half]) / heard_hours[half]
        on = next((t for t in np.arange(LEAST, MOST, 0.02) if alarms(0, t) <= ALARMS_PER_WORD), MOST)
        events[w] = dict(on=round(float(on), 2), off=round(float(on) / 2, 2), hold_s=0.3)
        mine = np.array([p for word, p in heard if word == w]) >= on
        found.append(mine)
        false.append(alarms(1, on))
        log("| %s | %.2f | %s | %d | %.2f |" % (w, on, percents(mine), len(mine), false[-1]))
    log("| all | | %s | %d | **%.2f** in %.2f h |" % (percents(np.concatenate(found)), len(heard), sum(false), heard_hours[1]))
    return events


def percents(found):
    return " | ".join("%.0f %%" % (100 * v) for v in found.mean(0))


# ---- classes --------------------------------------------------------------------------------------------------------

def average_precision(p, y):
    order = np.argsort(-p, kind="stable")
    hits = y[order].cumsum()
    return float((hits / np.arange(1, len(y) + 1))[y[order]].mean())


def clip_score(p):
    """(hops,) -> the largest mean over half a second."""
    return np.convolve(p, np.ones(50) / 50, "valid").max() if len(p) >= 50 else p.mean()


def fold_five(root):
    """[(label or '', number of the original recording, samples)]"""
    out = []
    for path in sorted(glob.glob(os.path.join(root, "esc50/*/5-*.flac"))):
        name = os.path.basename(os.path.dirname(path))
        out.append((tag_pack.label_of("noise", "esc50", name), int(os.path.basename(path).split("-")[1]), read_clip(path)))
    return [c for c in out if c[0] is not None]


def score_classes(model, clips, music, log):
    """Average precision of every class over fold 5 and held-out music; thresholds by the best F1 on the even recordings."""
    clips = clips + [("music", i, x) for i, x in enumerate(music)]
    p = np.array([[clip_score(s[:, j]) for j in range(len(model.labels))] for s in (model(x) for *_, x in clips)])
    even = np.array([number % 2 == 0 for _, number, _ in clips])
    events, rows = {}, []
    for name in sorted({c[0] for c in clips} - {""}):
        y, s = np.array([c[0] == name for c in clips]), p[:, model.labels.index(name)]
        grid = np.arange(0.15, 0.9, 0.05)
        f1 = lambda rows_, t: 2 * (y & (s >= t) & rows_).sum() / max(1, (y & rows_).sum() + ((s >= t) & rows_).sum())
        on = float(grid[int(np.argmax([f1(even, t) for t in grid]))])
        events[name] = dict(on=round(on, 2), off=round(0.7 * on, 2), hold_s=0.5, min_s=0.2)
        rows.append((name, y.sum(), average_precision(s, y), on, f1(~even, on) if (y & ~even).any() else float("nan")))
    log("| class | clips | average precision | threshold | F1, odd recordings |\n|---|---|---|---|---|")
    for row in sorted(rows, key=lambda r: -r[2]):
        log("| %s | %d | %.2f | %.2f | %.2f |" % row)
    means = np.mean([r[2] for r in rows]), np.nanmean([r[4] for r in rows])
    log("| mean of %d | %d | **%.3f** | | %.2f |" % (len(rows), len(clips), *means))
    return events


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--model", required=True)
    p.add_argument("--root", required=True)
    p.add_argument("--parts", nargs="+", required=True)
    p.add_argument("--pack", nargs="+", required=True)
    p.add_argument("--music", nargs="*", default=[], help="held-out music")
    p.add_argument("--hours", type=float, default=2.0, help="speech without key words, both halves together")
    p.add_argument("--events")
    a = p.parse_args()
    model, clips = Model(a.model), fold_five(a.root)
    events = {"*": dict(on=0.5, off=0.35, hold_s=0.2), "silence": dict(on=0.6, off=0.4, min_s=0.5)}
    if "music" in model.labels:
        events.update(score_classes(model, clips, [read_clip(m) for m in a.music], print))
    words = [(word, x) for word, x in word_clips(a.root) if word in model.labels]
    if words:
        events.update(score_words(model, words, a.parts, a.pack, [x for *_, x in clips], a.hours, print))
    if a.events:
        with open(a.events, "w") as f:
            json.dump(events, f, indent=1)


if __name__ == "__main__":
    main()
