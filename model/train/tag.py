#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Trains the audio taggers: vad, tag-audio, digits.

    python3 tag_pack.py --parts PARTS --root SOURCES --out PACK
    python3 tag.py vad --data PACK --out RUN --minutes 8
    python3 tag.py digits --data PACK --out RUN --minutes 0.7 --left-out george
    python3 tag.py all --data PACK --out RUN            (everything, one process each, digits once a speaker)

Minutes are of training, by the clock; the learning rate ends there. RUN/NAME.pt holds the averaged weights, saved each
half minute; tag_export.py makes the model file. --resume goes on from them (a fresh optimiser, a lower rate).
"""
import argparse
import math
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import layers  # noqa: E402
import tag_mix  # noqa: E402
import tagger  # noqa: E402

RECIPES = {
    "vad": dict(d_model=48, n_layer=3, look=2, batch=64, seconds=8.96, lr=4e-3, minutes=8.0),
    "tag-audio": dict(d_model=128, n_layer=4, look=0, batch=48, seconds=9.6, lr=2e-3, minutes=8.0),
    "digits": dict(rate=8000, window=160, hop=80, d_model=64, n_layer=2, exclusive=True, batch=128, lr=3e-3, minutes=1.0),
}
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
EMA, WARMUP, WEIGHT_DECAY, SAVE_SECONDS = 0.999, 200, 0.03, 30.0


def maker(name, recipe, pool, device, folder, left_out):
    settings = {k: recipe[k] for k in ("batch", "seconds") if k in recipe}
    if name == "vad":
        return tag_mix.Voice(settings, pool, device)
    if name == "tag-audio":
        return tag_mix.Scenes(settings, pool, device)
    return tag_mix.Digits(settings, pool, device, folder, left_out)


def loss_of(logits, target, weight, exclusive, look):
    """Cross-entropy where it is asked for; logits come `look` hops late. Labels that are rare weigh no less: the mean is
    taken a label at a time."""
    if look:
        logits, target, weight = logits[:, look:], target[:, :-look], weight[:, :-look]
    if exclusive:
        each = -(target * F.log_softmax(logits, -1)).sum(-1)
        return (each * weight[..., 0]).sum() / weight[..., 0].sum()
    each = F.binary_cross_entropy_with_logits(logits, target, reduction="none") * weight
    return (each.sum((0, 1)) / weight.sum((0, 1)).clamp_min(1)).mean()


class Average:
    """Running average of a model's parameters."""

    def __init__(self, model):
        self.parameters = list(model.parameters())
        self.values = [p.detach().clone() for p in self.parameters]
        self.names, self.count = [n for n, _ in model.named_parameters()], 0

    @torch.no_grad()
    def update(self):
        self.count += 1
        keep = min(EMA, (1 + self.count) / (10 + self.count))
        for v, p in zip(self.values, self.parameters):
            v.lerp_(p, 1 - keep)

    def tensors(self):
        return {n: v.cpu() for n, v in zip(self.names, self.values)}


def scan_for(device, kind, shape, log):
    if device.type != "cuda":
        return None
    import train
    return train.choose_scan(kind, device, shape, log)[1]


def run(a, name, recipe):
    device = torch.device("cuda" if torch.cuda.is_available() and a.device != "cpu" else "cpu")
    title = name + ("-without-" + a.left_out if a.left_out else "")
    begin, file = time.time(), open(os.path.join(a.out, title + ".log"), "a")

    def log(text):
        print("%s %6.1f %s" % (title, time.time() - begin, text), flush=True)
        print("%6.1f %s" % (time.time() - begin, text), file=file, flush=True)

    torch.manual_seed(1)
    torch.set_float32_matmul_precision("high")
    pool = tag_mix.Pool(a.data, device)
    log("data: " + pool.told)
    make = maker(name, recipe, pool, device, a.data[0], a.left_out)
    config = tagger.complete(dict(recipe, labels=tuple(make.labels)))
    model = tagger.Tagger(config).to(device)
    path = os.path.join(a.out, title + ".pt")
    if a.resume and os.path.exists(path):
        model.load_state_dict(torch.load(path, map_location=device)["tensors"], strict=False)
        log("resume: weights of " + path)
    sound, *_ = make()
    E = config["expand"] * config["d_model"]
    scan = scan_for(device, a.scan, (sound.shape[0], sound.shape[1] // config["hop"], E, config["d_state"]), log)
    optimiser = torch.optim.AdamW(tagger.parameter_groups(model, WEIGHT_DECAY), lr=1.0, betas=(0.9, 0.99))
    average, step, recent = Average(model), 0, []
    log("model: %d parameters, labels: %s" % (sum(p.numel() for p in model.parameters()), ", ".join(make.labels)))
    seconds, start = 60.0 * recipe["minutes"], time.time()
    told = saved = start
    while True:
        progress = (time.time() - start) / seconds
        if progress >= 1 or step >= a.steps:
            break
        rate = recipe["lr"] * min(1.0, (step + 1) / WARMUP) * (0.001 + 0.999 * 0.5 * (1 + math.cos(math.pi * progress)))
        for group in optimiser.param_groups:
            group["lr"] = rate
        sound, target, weight = make()
        loss = loss_of(model(sound, scan), target, weight, config["exclusive"], config["look"])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        if not torch.isfinite(norm):            # such a step would end the run
            continue
        optimiser.step()
        average.update()
        step += 1
        recent.append(loss.detach())
        now = time.time()
        if now - told > a.log_seconds:
            log("step %6d  loss %.4f  lr %.1e  %.0f audio-s/s" % (
                step, float(torch.stack(recent).mean()), rate, len(recent) * sound.numel() / config["rate"] / (now - told)))
            told, recent = now, []
        if now - saved > SAVE_SECONDS:
            save(path, config, average, step)
            saved = now
    save(path, config, average, step)
    log("done: %d steps" % step)
    if name == "digits":
        model.load_state_dict(average.tensors(), strict=False)
        log("digits: %.2f %% of %d clips right" % (100 * digit_accuracy(model, make.test, device), len(make.test)))


def save(path, config, average, step):
    torch.save(dict(config=config, step=step, tensors=average.tensors()), path + ".tmp")
    os.replace(path + ".tmp", path)


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
    rest = ["--data", *a.data, "--out", a.out, "--scan", a.scan, "--steps", str(a.steps), "--device", a.device]
    scale = ["--scale", str(a.scale)]
    others = [subprocess.Popen(command + [name] + rest + scale) for name in ("vad", "tag-audio")]
    for speaker in (None,) + SPEAKERS:
        subprocess.run(command + ["digits"] + rest + scale + (["--left-out", speaker] if speaker else []), check=False)
    sys.exit(max(p.wait() for p in others))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("name", choices=sorted(RECIPES) + ["all"])
    p.add_argument("--data", nargs="+", required=True, help="tag_pack.py's folders; the digits are the first one's")
    p.add_argument("--out", default="run")
    p.add_argument("--minutes", type=float)
    p.add_argument("--scale", type=float, default=1.0, help="times the recipe's minutes")
    p.add_argument("--steps", type=int, default=1 << 60)
    p.add_argument("--batch", type=int)
    p.add_argument("--left-out", help="digits: the speaker to test on")
    p.add_argument("--resume", action="store_true")
    p.add_argument("--scan", default="auto")
    p.add_argument("--device", choices=("auto", "cpu"), default="auto")
    p.add_argument("--log-seconds", type=float, default=10.0)
    a = p.parse_args()
    os.makedirs(a.out, exist_ok=True)
    if a.name == "all":
        run_all(a)
    recipe = dict(RECIPES[a.name])
    recipe["minutes"] = a.minutes or recipe["minutes"] * a.scale
    recipe["batch"] = a.batch or recipe["batch"]
    run(a, a.name, recipe)
