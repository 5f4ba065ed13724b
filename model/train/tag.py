#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Trains the audio taggers: vad, tag-audio, key-words, digits.

    python3 tag_pack.py --parts PARTS --root SOURCES --out PACK
    python3 tag.py vad --parts PARTS --out RUN --minutes 8
    python3 tag.py digits --data PACK --out RUN --minutes 0.7 --left-out george
    python3 tag.py all --parts PARTS --data PACK --out RUN      (everything, one process each, digits once a speaker)

vad hears what the denoisers hear; parts that appear while it trains join in. Minutes are of training, by the clock, and what
the process was stopped for doesn't count; the learning rate ends there. RUN/NAME.pt holds the averaged weights, saved each
half minute; tag_export.py makes the model file. --resume goes on from them with a fresh optimiser (--set lr=...).
"""
import argparse
import contextlib
import json
import math
import os
import subprocess
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import data  # noqa: E402
import layers  # noqa: E402
import tag_mix  # noqa: E402
import tagger  # noqa: E402
import train  # noqa: E402

COMMON = dict(warmup=200, lr_floor=4e-6, betas=(0.9, 0.99), weight_decay=0.03, ema=0.999, compile=True, graph=True)
RECIPES = {
    "vad": dict(COMMON, d_model=96, n_layer=4, look=4, batch=64, seconds=8.96, lr=3e-3, minutes=12.0),
    "tag-audio": dict(COMMON, d_model=160, n_layer=4, look=0, phase=False, dropout=0.1, batch=64, seconds=9.6, lr=2e-3, weight_decay=0.1,
                      ema=0.9995, minutes=8.0, graph=False),        # a replay of dropout never agrees
    "key-words": dict(COMMON, d_model=96, n_layer=4, exclusive=True, batch=96, seconds=6.4, lr=2e-3, minutes=6.0),
    "digits": dict(COMMON, rate=8000, window=160, hop=80, d_model=64, n_layer=2, exclusive=True, batch=128, lr=3e-3, minutes=1.5),
}
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
BESIDE = 0.5
SAVE_SECONDS, POLL_SECONDS, STOPPED_SECONDS = 30.0, 10.0, 10.0


class Parts(data.Pool):
    """The denoisers' parts, and more of them while training goes on."""

    def __init__(self, folders, device, log):
        super().__init__(folders, tag_mix.RATE, device, speech_hours=20.0, noise_hours=12.0, log=log,
                         cache=os.path.join(tempfile.gettempdir(), "ssm-tag-cache"))
        self.looked = 0.0
        while not self.speech.rows or not self.noise.rows:
            self.poll(wait=True)
            time.sleep(1)

    def more(self):
        """Take in what has appeared, at most every few seconds."""
        if time.time() - self.looked > POLL_SECONDS:
            self.looked = time.time()
            self.poll()


class Clock:
    """How much of its minutes a training has had. A gap of STOPPED_SECONDS between two looks is time it was stopped for."""

    def __init__(self, minutes, until):
        self.begin = self.seen = time.time()
        self.seconds, self.until = 60 * minutes, until

    def gone(self):
        """0 at the beginning, 1 and more when it's over: the minutes, or what `until` leaves of them."""
        now = time.time()
        if now - self.seen > STOPPED_SECONDS:
            self.begin += now - self.seen
        self.seen = now
        return (now - self.begin) / max(min(self.seconds, self.until - self.begin), 1e-9)


def maker(name, recipe, pool, device, folder, left_out, wrap):
    settings = {k: recipe[k] for k in ("batch", "seconds", "speed") if k in recipe}
    if name == "vad":
        return tag_mix.Voice(settings, pool, device, wrap)
    if name in ("tag-audio", "key-words"):
        return (tag_mix.Scenes if name == "tag-audio" else tag_mix.Words)(settings, pool, device, wrap)
    return tag_mix.Digits(settings, pool, device, folder, left_out)


def importance(labels, device):
    """What each label counts in the loss, 1 together; those trained beside the others, with a ~, half of what those do."""
    told = torch.tensor([not name.startswith("~") for name in labels], device=device)
    beside = BESIDE / (~told).sum().clamp_min(1)
    counts = torch.where(told, 1.0 / told.sum(), beside)
    return counts / counts.sum()


def loss_of(logits, target, weight, exclusive, look, counts):
    """Cross-entropy where it is asked for; logits come `look` hops late. Labels that are rare weigh no less: the mean is
    taken a label at a time, and each counts what `counts` says."""
    if look:
        logits, target, weight = logits[:, look:], target[:, :-look], weight[:, :-look]
    if exclusive:
        each = -(target * F.log_softmax(logits, -1)).sum(-1)
        return (each * weight[..., 0]).sum() / weight[..., 0].sum()
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight
    return (each.sum((0, 1)) / weight.sum((0, 1)).clamp_min(1) * counts).sum()


class Step(train.Step):
    """Forward and backward of one batch into the flat gradient; a CUDA graph where that can be had."""

    def __init__(self, model, flat, device, scan, wrap, log):
        self.model, self.flat, self.scan, self.log, self.device = model, flat, scan, log, device
        self.pieces = {k: wrap(layers.PIECES[k]) for k in ("hop_frames", "encode", "block_in", "block_out")}
        self.counts = importance(model.config["labels"], device)
        self.graph, self.parts, self.batch = None, None, None

    def settle(self, batch):
        """Find a way in which loss and gradients are finite on this machine: as asked for, nothing compiled, another scan; each
        keeps what the one before gave up. Where ten processes shared an H200 through MPS every loss was NaN from the first step;
        without MPS all ways agree there."""
        plain = {k: layers.PIECES[k] for k in self.pieces}
        triton = layers.make_scan("triton32") if self.device.type == "cuda" else None
        for way, change in (("as asked for", {}), ("nothing compiled", dict(pieces=plain)), ("Triton's scan", dict(scan=triton))):
            vars(self).update(change)
            loss, norm = float(self.eager(*batch)), float(self.flat.grad.norm())
            self.log("step: %s: loss %.4f, gradient %.4g" % (way, loss, norm))
            if math.isfinite(loss + norm):
                return
        self.log("step: batch finite %s, weights finite %s" % (
            [bool(torch.isfinite(x).all()) for x in batch], bool(torch.isfinite(self.flat.flat).all())))
        raise SystemExit("no way gives a finite loss")

    def eager(self, sound, target, weight):
        self.flat.grad.zero_()
        logits = self.model(sound, self.scan, pieces=self.pieces)
        value = loss_of(logits, target, weight, self.model.config["exclusive"], self.model.config["look"], self.counts)
        value.backward()
        return value.detach()[None]


class Ahead:
    """Batches made on a stream of their own, while the step before is still on the device."""

    def __init__(self, make, device):
        self.make, self.stream = make, torch.cuda.Stream() if device.type == "cuda" else None

    def __call__(self):
        if self.stream is None:
            return self.make()
        with torch.cuda.stream(self.stream):
            batch = self.make()
        torch.cuda.current_stream().wait_stream(self.stream)
        for x in batch:
            x.record_stream(torch.cuda.current_stream())
        return batch


def scan_for(device, kind, shape, log):
    return train.choose_scan(kind, device, shape, log)[1] if device.type == "cuda" else None


def run(a, name, recipe):
    device = torch.device("cuda" if torch.cuda.is_available() and a.device != "cpu" else "cpu")
    title = name + ("-without-" + a.left_out if a.left_out else "")
    begin, file = time.time(), open(os.path.join(a.out, title + ".log"), "a")

    def log(text):
        print("%s %6.1f %s" % (title, time.time() - begin, text), flush=True)
        print("%6.1f %s" % (time.time() - begin, text), file=file, flush=True)

    torch.manual_seed(a.seed)
    torch.set_float32_matmul_precision("high")
    if name == "vad":
        pool = Parts(a.parts, device, log)
    else:
        pool = tag_mix.Pool(a.data, device, a.left_out)
        log("data: " + pool.told)
    wrap = train.compiler(recipe["compile"] and device.type == "cuda", log)
    make = maker(name, recipe, pool, device, a.data and a.data[0], a.left_out, wrap)
    config = tagger.complete(dict(recipe, labels=tuple(make.labels)))
    model = tagger.Tagger(config).to(device)
    flat = train.Flat(model, recipe, device, wrap)
    path = os.path.join(a.out, title + ".pt")
    count = resume(path, flat, log) if a.resume else 0
    batch = make()
    E = config["expand"] * config["d_model"]
    scan = scan_for(device, a.scan, (batch[0].shape[0], batch[0].shape[1] // config["hop"], E, config["d_state"]), log)
    step = Step(model, flat, device, scan, wrap, log)
    log("model: %d parameters, labels: %s" % (flat.flat.numel(), ", ".join(make.labels)))
    step.settle(batch)
    if recipe["graph"] and device.type == "cuda":
        step.capture(*batch)
    more = pool.more if name == "vad" else lambda: None

    def keep(n):
        save(path, config, flat, count + n)
        if name == "tag-audio" and pool.test:
            with averaged(flat):
                log("step %6d  mean average precision %.4f of %d clips" % (n, precision(model, pool.test, scan, device), len(pool.test)))

    loop(a, recipe, step, Ahead(make, device), more, log, keep)
    if name == "digits":
        flat.swap_in_average()
        log("digits: %.2f %% of %d clips right" % (100 * digit_accuracy(model, make.test, device), len(make.test)))


def loop(a, recipe, step, batches, more, log, keep):
    """Steps until the recipe's minutes are over; more() before each, keep(steps) each half minute and at the end."""
    lr, count, recent, events, clock = torch.zeros((), device=step.device), 0, [], [], Clock(recipe["minutes"], a.until)
    told = saved = time.time()
    while (gone := clock.gone()) < 1 and count < a.steps:
        more()
        batch = batches()
        recent.append(step(*batch).clone())
        lr.fill_(train.learning_rate(recipe, count, gone))
        step.flat.update(lr)
        count += 1
        if step.device.type == "cuda":          # stay at most two steps ahead of the device
            events.append(torch.cuda.Event())
            events[-1].record()
            if len(events) > 2:
                events.pop(0).synchronize()
        now = time.time()
        if now - told > a.log_seconds:
            log("step %6d  loss %.4f  lr %.1e  %.0f audio-s/s" % (
                count, float(torch.cat(recent).mean()), float(lr),
                len(recent) * batch[0].numel() / step.model.config["rate"] / (now - told)))
            told, recent = now, []
        if now - saved > SAVE_SECONDS:
            keep(count)
            saved = now
    keep(count)
    log("done: %d steps" % count)


def resume(path, flat, log):
    """Start from a checkpoint's averaged weights; gives the steps they took."""
    if not os.path.exists(path):
        return 0
    kept = torch.load(path, map_location="cpu")
    flat.load_average({k: v for k, v in kept["tensors"].items() if k in flat.names})
    log("resume: weights of step %d" % kept["step"])
    return kept["step"]


def save(path, config, flat, step):
    train.save(path, dict(config=config, step=step, tensors=flat.average()))


@contextlib.contextmanager
def averaged(flat):
    flat.swap_in_average()
    yield
    flat.swap_back()


@torch.no_grad()
def precision(model, clips, scan, device, at_once=64):
    """Mean average precision over the labels of clips [(label, samples)]; a clip's score is its largest mean over half a second."""
    model.eval()
    scores, n = [], 5 * tag_mix.RATE
    for at in range(0, len(clips), at_once):
        x = torch.zeros(len(clips[at:at + at_once]), n)
        for row, (_, sound) in zip(x, clips[at:at + at_once]):
            row[:len(sound)] = torch.from_numpy(sound[:n].astype("float32") / 32768)
        x += (torch.rand(x.shape) - 0.5) / 32768
        p = model(x.to(device), scan).sigmoid().transpose(1, 2)
        scores.append(F.avg_pool1d(p, 50, 1).amax(2).cpu())
    model.train()
    scores, found = torch.cat(scores), []
    for label in sorted({c[0] for c in clips} - {""}):
        right = torch.tensor([c[0] == label for c in clips])[scores[:, model.config["labels"].index(label)].argsort(descending=True)]
        found.append(float((right.cumsum(0) / torch.arange(1, len(right) + 1))[right].mean()))
    return sum(found) / len(found)


@torch.no_grad()
def digit_accuracy(model, clips, device, before=800, after=1200):
    """Share of clips, in silence and dither, whose likeliest digit at any hop is the right one."""
    right, model = 0, model.eval()
    clips = sorted(clips, key=lambda c: len(c[3]))
    for at in range(0, len(clips), 50):
        part = clips[at:at + 50]
        n = -(-(before + after + max(len(c[3]) for c in part)) // 80) * 80
        x = (torch.rand(len(part), n) - 0.5) / 32768
        for i, c in enumerate(part):
            x[i, before:before + len(c[3])] += torch.from_numpy(c[3].astype("float32") / 32768)
        p = model(x.to(device)).softmax(-1)[..., 1:].cpu()
        hops = torch.tensor([(before + len(c[3]) + after) // 80 for c in part])
        p = p * (torch.arange(p.shape[1]) < hops[:, None])[..., None]
        right += int((p.amax(1).argmax(1) == torch.tensor([c[0] for c in part])).sum())
    return right / len(clips)


def run_all(a):
    """Each model in a process of its own on the same device; the digits' runs share one after the other."""
    command = [sys.executable, os.path.abspath(__file__)]
    rest = ["--parts", *a.parts, "--data", *a.data, "--out", a.out, "--scan", a.scan, "--steps", str(a.steps), "--device", a.device]
    scale = ["--scale", str(a.scale)]
    others = [subprocess.Popen(command + [name] + rest + scale) for name in ("vad", "tag-audio", "key-words")]
    for speaker in (None,) + SPEAKERS:
        subprocess.run(command + ["digits"] + rest + scale + (["--left-out", speaker] if speaker else []), check=False)
    sys.exit(max(p.wait() for p in others))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("name", choices=sorted(RECIPES) + ["all"])
    p.add_argument("--data", nargs="+", default=[], help="tag_pack.py's folders; the digits are the first one's")
    p.add_argument("--parts", nargs="+", default=[], help="vad: train.py's --data")
    p.add_argument("--out", default="run")
    p.add_argument("--minutes", type=float)
    p.add_argument("--until", type=float, default=math.inf, help="but not beyond this time, in seconds since 1970")
    p.add_argument("--scale", type=float, default=1.0, help="times the recipe's minutes")
    p.add_argument("--steps", type=int, default=1 << 60)
    p.add_argument("--set", default="", metavar="KEY=VALUE,...", help="of the recipe, numbers")
    p.add_argument("--seed", type=int, default=1)
    p.add_argument("--left-out", help="digits: the speaker to test on; tag-audio: the fold of ESC-50")
    p.add_argument("--resume", action="store_true")
    p.add_argument("--scan", default="auto")
    p.add_argument("--device", choices=("auto", "cpu"), default="auto")
    p.add_argument("--log-seconds", type=float, default=10.0)
    a = p.parse_args()
    if not (a.data or a.name == "vad") or not (a.parts or a.name not in ("vad", "all")):
        p.error("vad needs --parts, the others --data, all both")
    os.makedirs(a.out, exist_ok=True)
    if a.name == "all":
        run_all(a)
    recipe = dict(RECIPES[a.name], **{k: json.loads(v) for k, _, v in (kv.partition("=") for kv in a.set.split(",") if kv)})
    recipe["minutes"] = a.minutes or recipe["minutes"] * a.scale
    run(a, a.name, recipe)
