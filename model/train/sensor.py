#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Trains the sensor models with random sampling rates and gaps, and shows what elapsed time is worth.

    python3 sensor.py motion --data SENSORS --out RUN [--seeds 5] [--steps N]
    python3 sensor.py vibration-tags --data SENSORS --out RUN

Each seed trains one model over the same data, the same rates and the same lost rows in four ways; only what it is told
about them differs:

    elapsed   the rows that arrived, each with the time since the one before, which multiplies dt
    zeros     zero rows in the place of lost ones, at the nominal rate
    held      the last row that arrived instead
    ignored   the rows that arrived, as if nothing were missing

and once more, `whole`, on the nominal rate with nothing lost.
RUN gets log.txt, every model as WAY-SEED.pt, every figure in curves.json and their means in table.md. sensor_export.py makes
the model file from one of them.
"""
import argparse
import glob
import json
import multiprocessing
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import tagger  # noqa: E402

WAYS = ("elapsed", "zeros", "held", "ignored")
TRAINED = WAYS + ("whole",)
LOST = (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9)


# ---- what arrives ---------------------------------------------------------------------------------------------------

def lose(rng, n, share, burst):
    """(n,) booleans: rows that arrive when this share is lost, alone or in bursts of this mean length; the first always."""
    keep, at = np.ones(n, bool), 0
    while burst > 1 and share > 0:
        at += 1 + rng.geometric(min(1.0, share / burst / (1 - share + share / burst)))
        if at >= n:
            break
        length = rng.geometric(1 / burst)
        keep[at:at + length] = False
        at += length
    if burst <= 1:
        keep = rng.random(n) >= share
    keep[0] = True
    return keep


def told(rows, times, way):
    """What a model is given of rows (n, width) at times (n,) in nominal hops: rows, elapsed."""
    if way not in ("zeros", "held"):
        gaps = np.diff(times, prepend=times[0] - 1)
        return rows, (np.ones_like(gaps) if way == "ignored" else gaps).astype(np.float32)
    slot = np.floor(times + 1e-6).astype(int)
    out, arrived = np.zeros((slot[-1] + 1, rows.shape[1]), np.float32), np.zeros(slot[-1] + 1, int)
    out[slot] = rows                                # of several in one slot the last stays
    arrived[slot] = slot
    if way == "held":
        out = out[np.maximum.accumulate(arrived)]
    return out, np.ones(len(out), np.float32)


def stack(items, ways):
    """[(rows, times, label)] -> rows (B, T, width), elapsed (B, T), last (B,), labels (B,); padded with what nobody reads."""
    given = [told(rows, times, ways) for rows, times, _ in items]
    T = max(len(r) for r, _ in given)
    x = np.zeros((len(items), T, given[0][0].shape[1]), np.float32)
    elapsed = np.ones((len(items), T), np.float32)
    for i, (rows, gaps) in enumerate(given):
        x[i, :len(rows)], elapsed[i, :len(gaps)] = rows, gaps
    last = torch.tensor([len(r) - 1 for r, _ in given])
    return torch.from_numpy(x), torch.from_numpy(elapsed), last, torch.tensor([y for *_, y in items])


# ---- the two tasks --------------------------------------------------------------------------------------------------

class Motion:
    """BasicMotions: ten seconds of a smart watch's accelerometer and gyroscope at 10 Hz; the archive's own split."""

    labels = ("standing", "running", "walking", "badminton")
    config = dict(front="scale", rate=10, hop=1, channels=6, d_model=16, n_layer=2, d_state=8, discretisation="zoh",
                  exclusive=True)
    more = dict(fields=["ax", "ay", "az", "gx", "gy", "gz"])
    batch, steps, lr = 40, 300, 5e-3
    rates = (0.5, 0.71, 1.0, 1.41, 2.0)
    name = "motion"

    def __init__(self, data, hold_out):
        if hold_out:
            sys.exit("motion has no parts to hold out")
        self.train, self.test = (self._read(os.path.join(data, "ucr_uea/BasicMotions/BasicMotions_%s.ts" % split))
                                 for split in ("TRAIN", "TEST"))
        rows = np.concatenate([x for x, _ in self.train])
        self.config = dict(self.config, mean=rows.mean(0).tolist(), std=rows.std(0).tolist(), labels=self.labels)

    def _read(self, path):
        items = []
        with open(path) as f:
            for line in f:
                if line[0] in "#@\n":
                    continue
                *channels, label = line.strip().split(":")
                rows = np.array([[float(v) for v in c.split(",")] for c in channels], np.float32).T
                items.append((rows, self.labels.index(label.lower())))
        return items

    @staticmethod
    def sampled(rows, rate, offset=0.0):
        """The series as a sensor at `rate` times the nominal one gives it, between samples by straight lines."""
        times = np.arange(offset, len(rows) - 1 + 1e-6, 1 / rate)
        at = times.astype(int)
        part = (times - at)[:, None].astype(np.float32)
        return rows[at] * (1 - part) + rows[np.minimum(at + 1, len(rows) - 1)] * part, times

    def draw(self, rng, whole):
        """A training batch: every series once, at its own rate, with its own loss unless whole, gain and noise."""
        items = []
        for rows, label in self.train:
            rate = 1.0 if whole or rng.random() < 0.3 else 2 ** rng.uniform(-1, 1)
            x, times = self.sampled(rows, rate, rng.uniform(0, 20))
            keep = lose(rng, len(x), 0.0 if whole else rng.uniform(0, 0.6), 1 if rng.random() < 0.5 else rng.uniform(2, 8))
            x = x * rng.uniform(0.8, 1.25) + rng.normal(0, 0.05, x.shape) * self.config["std"]
            items.append((x[keep].astype(np.float32), times[keep] - times[0], label))
        return items

    def trial(self, rng, rate, lost, burst):
        """The whole test set at one rate and one loss."""
        items = []
        for rows, label in self.test:
            x, times = self.sampled(rows, rate)
            keep = lose(rng, len(x), lost, burst)
            items.append((x[keep], times[keep], label))
        return items


class Vibration:
    """CWRU bearings, drive end at 12 kHz: nine faults and none; trained on loads 1 to 3 hp, tested on 0 hp.

    Of the healthy bearing only one recording (load 0) could be had: its first 70 % train, its last 30 % test. A row is a hop of
    32 samples; a rate below 1 is a sensor that rests: of every two hops one arrives. lost hops are whole ones."""

    config = dict(front="stft", rate=12000, window=64, hop=32, d_model=32, n_layer=2, d_state=8, discretisation="zoh",
                  exclusive=True)
    more = dict(fields=["acceleration"], units=["g"])
    batch, steps, lr = 20, 800, 4e-3
    rates = (0.25, 0.5, 1.0)
    seconds, name = 0.68, "vibration-tags"
    KINDS = dict(B="ball", IR="inner race", OR="outer race")

    def __init__(self, data, hold_out):
        """hold_out: a load to test on in the place of 0, which is then left alone: for choosing settings."""
        self.recordings, self.labels = [], ["normal"]
        for path in sorted(glob.glob(os.path.join(data, "cwru_12k_de", "*.npz"))):
            z = np.load(path)
            x = z["x"].astype(np.float32) * float(z["scale"])
            parts = os.path.basename(path)[:-4].split("_")
            if parts[0] == "normal":
                cut = int(0.7 * len(x)) // 32 * 32
                self.recordings += [(x[:cut], "normal", None), (x[cut:], "normal", hold_out or 0)]
                continue
            label = "%s 0.%s in" % (self.KINDS[parts[0]], parts[1])
            self.labels += [label] * (label not in self.labels)
            load = int(parts[-1])
            if load or not hold_out:
                self.recordings.append((x, label, load))
        tested = hold_out or 0
        cut = lambda x: x[:len(x) // 32 * 32].reshape(-1, 32)
        self.train = [(cut(x), self.labels.index(k)) for x, k, load in self.recordings if load != tested]
        self.test = [(cut(x), self.labels.index(k)) for x, k, load in self.recordings if load == tested]
        self.config = dict(self.config, labels=tuple(self.labels))
        self.window = int(self.seconds * 375)

    def draw(self, rng, whole):
        """A training batch: the classes alike, windows from anywhere, each with its own speed, gain, low-pass, and unless whole
        loss and rest."""
        items = []
        for i in range(self.batch):
            label = i % len(self.labels)
            mine = [rows for rows, y in self.train if y == label]
            rows = mine[rng.integers(len(mine))]
            at = np.arange(self.window * 32) * rng.uniform(0.975, 1.025)
            n = int(at[-1]) + 2
            begin = rng.integers(rows.size - n)
            x = np.interp(at, np.arange(n), rows.reshape(-1)[begin:begin + n])
            x = x * 10 ** (rng.uniform(-4, 4) / 20) * rng.choice((-1, 1)) + rng.normal(0, 0.003, len(x))
            if rng.random() < 0.25:
                x = low_pass(x, rng.uniform(2500, 6000) / 12000)
            x = x.reshape(-1, 32)
            keep = lose(rng, len(x), 0.0 if whole else rng.uniform(0, 0.6), 1 if rng.random() < 0.5 else rng.uniform(2, 30))
            keep &= np.arange(len(x)) % (1 if whole else rng.choice((1, 1, 2, 4))) == 0
            items.append((x[keep].astype(np.float32), np.flatnonzero(keep).astype(float), label))
        return items

    def trial(self, rng, rate, lost, burst):
        """Every whole window of the test recordings."""
        items = []
        for rows, label in self.test:
            for begin in range(0, len(rows) - self.window + 1, self.window):
                x = rows[begin:begin + self.window]
                keep = lose(rng, len(x), lost, burst) & (np.arange(len(x)) % int(round(1 / rate)) == 0)
                items.append((x[keep], np.flatnonzero(keep).astype(float), label))
        return items


def low_pass(x, edge):
    """x without what lies above edge (of the sampling rate)."""
    spectrum = np.fft.rfft(x)
    spectrum *= 1 / (1 + (np.arange(len(spectrum)) / (edge * len(x))) ** 24)
    return np.fft.irfft(spectrum, len(x))


TASKS = {t.name: t for t in (Motion, Vibration)}


# ---- training and trials --------------------------------------------------------------------------------------------

def logits_of(model, items, way):
    x, elapsed, last, labels = stack(items, way)
    x = x.reshape(len(x), -1) if model.config["front"] == "stft" else x
    return model(x, elapsed=elapsed), last, labels


def loss_of(model, items, way):
    """Cross-entropy of every row, later ones weighing more, and of the last."""
    logits, last, labels = logits_of(model, items, way)
    each = F.cross_entropy(logits.transpose(1, 2), labels[:, None].expand(-1, logits.shape[1]), reduction="none")
    weight = torch.arange(1.0, logits.shape[1] + 1) * (torch.arange(logits.shape[1]) <= last[:, None])
    weight = weight / weight.sum(1, keepdim=True)
    return ((each * weight).sum(1) + 0.5 * each[torch.arange(len(last)), last]).mean() / 1.5


def train(task, way, seed, steps, log):
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = tagger.Tagger(task.config)
    optimiser = torch.optim.AdamW(tagger.parameter_groups(model, 0.05), lr=task.lr, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, task.lr, steps + 1, pct_start=0.1)
    recent = []
    for step in range(steps):
        loss = loss_of(model, task.draw(rng, way == "whole"), way)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        recent = recent[-49:] + [float(loss)]
        if (step + 1) % 100 == 0:
            log("%s, seed %d, step %d: loss %.4f" % (way, seed, step + 1, np.mean(recent)))
    return model.eval(), float(np.mean(recent))


@torch.no_grad()
def accuracy(model, task, way, rate, lost, burst, draws, seed=1):
    """Share of items whose last row names the right label, over `draws` draws of what is lost."""
    rng, right, count = np.random.default_rng(seed), 0, 0
    for _ in range(draws if lost else 1):
        items = task.trial(rng, rate, lost, burst)
        for at in range(0, len(items), 64):
            logits, last, labels = logits_of(model, items[at:at + 64], way)
            right += int((logits[torch.arange(len(last)), last].argmax(1) == labels).sum())
        count += len(items)
    return right / count


def curve(model, task, way, draws, **which):
    """[{rate, lost, burst, accuracy, ...}] of a model fed in one way."""
    ends = [(task.rates[0], 0.5, 1), (task.rates[-1], 0.5, 1)] if task.rates[-1] > 1 else []
    trials = [(r, 0.0, 1) for r in task.rates] + [(1.0, p, b) for b in (1, 8) for p in LOST] + ends
    return [dict(which, fed=way, rate=r, lost=p, burst=b, accuracy=accuracy(model, task, way, r, p, b, draws))
            for r, p, b in trials]


def job(arguments):
    """Trains one model and measures it, fed in its own way; those of `elapsed` and `whole` are fed in every way."""
    a, way, seed = arguments
    torch.set_num_threads(1)
    task = TASKS[a.task](a.data, a.hold_out)
    begin = time.time()

    def log(text):
        with open(os.path.join(a.out, "log.txt"), "a") as f:
            for out in (sys.stdout, f):
                print("%6.0f %s" % (time.time() - begin, text), file=out, flush=True)

    model, loss = train(task, way, seed, a.steps or task.steps, log)
    torch.save(dict(config=task.config, more=task.more, loss=loss, tensors=model.state_dict()),
               os.path.join(a.out, "%s-%d.pt" % (way, seed)))
    ways = WAYS if way in ("elapsed", "whole") else (way,)
    rows = [r for fed in ways for r in curve(model, task, fed, a.draws, trained=way, seed=seed)]
    plain = next(r["accuracy"] for r in rows if r["rate"] == 1 and not r["lost"])
    log("%s, seed %d: training loss %.4f, accuracy %.4f" % (way, seed, loss, plain))
    return rows


def column_name(burst, lost, rate):
    if not lost:
        return "rate %.2g" % rate
    return "%d %%" % round(100 * lost) + " in bursts" * (burst > 1) + (", rate %.2g" % rate if rate != 1 else "")


def table(rows):
    """The curves as Markdown: a line a way, columns by rate and by loss, means over the seeds in percent."""
    columns = sorted({(r["burst"], r["lost"], r["rate"]) for r in rows}, key=lambda c: (c[1] > 0, c))
    lines = ["| trained on, fed | " + " | ".join(column_name(*c) for c in columns) + " |", "|---" * (len(columns) + 1) + "|"]
    order = lambda w: (TRAINED.index(w[0]), WAYS.index(w[1]))
    for way in sorted({(r["trained"], r["fed"]) for r in rows}, key=order):
        mine = [r for r in rows if (r["trained"], r["fed"]) == way]
        cells = [np.mean([r["accuracy"] for r in mine if (r["burst"], r["lost"], r["rate"]) == c]) for c in columns]
        lines.append("| %s, %s | " % way + " | ".join("%.1f" % (100 * v) for v in cells) + " |")
    return "\n".join(lines)


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("task", choices=sorted(TASKS))
    p.add_argument("--data", required=True, help="folder with cwru_12k_de/ and ucr_uea/")
    p.add_argument("--out", default="run")
    p.add_argument("--seeds", type=int, default=3)
    p.add_argument("--steps", type=int)
    p.add_argument("--ways", nargs="+", choices=TRAINED, default=TRAINED)
    p.add_argument("--hold-out", type=int, default=0, help="vibration: test on this load, and leave load 0 alone")
    p.add_argument("--draws", type=int, default=5, help="draws of what is lost for a figure")
    p.add_argument("--jobs", type=int, default=1, help="models trained at a time, a core each")
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    with multiprocessing.Pool(a.jobs) as pool:
        rows = sum(pool.imap_unordered(job, [(a, way, seed) for seed in range(1, a.seeds + 1) for way in a.ways], 1), [])
    with open(os.path.join(a.out, "curves.json"), "w") as f:
        json.dump(rows, f, indent=0)
    with open(os.path.join(a.out, "table.md"), "w") as f:
        f.write(table(rows) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
