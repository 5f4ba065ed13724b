#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Trains a denoiser: audio folders in, checkpoints and model files out.

    python3 train.py --recipe denoise-16k --data PARTS --val HELDOUT --out RUN --minutes 24
    torchrun --nproc_per_node=2 train.py ...        (one process a GPU; gradients are averaged)
    python3 train.py --recipe smoke                 (two minutes on a CPU, synthetic audio unless --data)

--minutes is wall-clock from the start of this process, start-up included; the learning rate reaches its floor then.
Parameters, gradients, moments and averages are flat buffers, so the update, the clip and the all-reduce are a few
kernels. The step is tried as it was asked for (compiled pieces, one CUDA graph, the chosen scan); what fails on this
machine falls back, with a line in the log.
"""
import argparse
import json
import math
import os
import sys
import time

T0 = time.time()
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import data  # noqa: E402
import export  # noqa: E402
import judge  # noqa: E402
import layers  # noqa: E402
import loss as losses  # noqa: E402
import mix as mixing  # noqa: E402
import reference  # noqa: E402
import validate  # noqa: E402
import warm  # noqa: E402
from recipes import RECIPES  # noqa: E402
from scan import selective_scan_reference  # noqa: E402


SCANS = ("auto", "cuda", "triton", "triton16", "triton32", "torch")


class Log:
    def __init__(self, path, quiet=False):
        self.file, self.quiet = None if quiet else open(path, "a"), quiet

    def __call__(self, text):
        if self.quiet:
            return
        line = "%7.1f %s" % (time.time() - T0, text)
        print(line, flush=True)
        self.file.write(line + "\n")
        self.file.flush()


class Guarded:
    """A compiled function that becomes the plain one, with a log line, when compiling or calling it fails."""

    def __init__(self, plain, log):
        self.plain, self.log, self.fast = plain, log, torch.compile(plain, dynamic=False)

    def __call__(self, *args):
        if self.fast is not None:
            try:
                return self.fast(*args)
            except Exception as e:      # whatever the compiler throws, training goes on
                self.log("compile: %s falls back: %s" % (self.plain.__name__, str(e).strip().split("\n")[0][:200]))
                self.fast = None
        return self.plain(*args)


def compiler(on, log):
    if not on or not hasattr(torch, "compile"):
        return lambda f: f
    from torch import _dynamo
    for key, value in (("cache_size_limit", 64), ("recompile_limit", 64), ("suppress_errors", True)):
        if hasattr(_dynamo.config, key):
            setattr(_dynamo.config, key, value)
    from torch._inductor import config as inductor
    if hasattr(inductor, "comprehensive_padding"):      # of rows over 1024; the backward of 48 kHz's decoder failed with it
        inductor.comprehensive_padding = False
    return lambda f: Guarded(f, log)


# ---- the weights as one vector --------------------------------------------------------------------------------------

def adam(flat, grad, m, v, ema, decayed, lr, state, beta1, beta2, weight_decay, ema_limit):
    """One AdamW step in place on flat buffers. state: [step, 90th percentile of the gradient norm, norm, skipped].

    The clip is at twice the percentile. A non-finite gradient changes nothing but the count of skipped steps."""
    norm = grad.norm()
    ok = torch.isfinite(norm)
    one = ok.to(grad.dtype)
    quantile = torch.where(state[1] > 0, state[1], norm.nan_to_num(1.0, 1.0, 1.0))
    g = torch.where(ok, grad, torch.zeros_like(grad)) * torch.clamp(2.0 * quantile / (norm + 1e-6), max=1.0).nan_to_num(0.0)
    step = state[0] + one
    m_new = torch.where(ok, beta1 * m + (1 - beta1) * g, m)
    v_new = torch.where(ok, beta2 * v + (1 - beta2) * g * g, v)
    count = step.clamp_min(1.0)
    direction = (m_new / (1 - beta1 ** count)) / ((v_new / (1 - beta2 ** count)).sqrt() + 1e-8)
    new = flat - one * lr * (direction + weight_decay * decayed * flat)
    keep = torch.clamp((1 + step) / (10 + step), max=ema_limit)
    ema_new = ema + (1 - keep) * (new - ema)
    above = (norm > quantile).to(grad.dtype)
    q_new = torch.where(ok, quantile * torch.exp(0.05 * (above - 0.1)), quantile).clamp(1e-3, 1e4)
    state_new = torch.stack((step, q_new, norm, state[3] + 1 - one))
    return new, m_new, v_new, ema_new, state_new


class Flat:
    """The model's parameters, gradients, Adam moments and running average, each one vector the parameters view."""

    def __init__(self, model, recipe, device, wrap):
        self.names, self.shapes, self.recipe = [], [], recipe
        parameters = list(model.named_parameters())
        n = sum(p.numel() for _, p in parameters)
        new = lambda k=n: torch.zeros(k, device=device)
        self.flat, self.m, self.v, self.ema, self.decayed, self.spare = new(), new(), new(), new(), new(), new()
        self.sent = new(n + 1)                  # gradients and, for several GPUs, this rank's learning rate
        self.grad = self.sent[:n]
        self.state = torch.zeros(4, device=device)
        at = 0
        for name, p in parameters:
            k = p.numel()
            self.flat[at:at + k].copy_(p.data.reshape(-1))
            p.data = self.flat[at:at + k].view(p.shape)
            p.grad = self.grad[at:at + k].view(p.shape)
            self.decayed[at:at + k] = float(layers.is_linear_weight(name) and "dt_proj" not in name)
            self.names.append(name)
            self.shapes.append(tuple(p.shape))
            at += k
        self.ema.copy_(self.flat)
        self.adam = wrap(adam)

    def update(self, lr):
        r = self.recipe
        new = self.adam(self.flat, self.grad, self.m, self.v, self.ema, self.decayed, lr, self.state, r["betas"][0],
                        r["betas"][1], r["weight_decay"], r["ema"])
        for old, value in zip((self.flat, self.m, self.v, self.ema, self.state), new):
            old.copy_(value)

    def swap_in_average(self):
        self.spare.copy_(self.flat)
        self.flat.copy_(self.ema)

    def swap_back(self):
        self.flat.copy_(self.spare)

    def average(self):
        """{name: tensor} of the averaged weights, on the CPU."""
        ema, out, at = self.ema.detach().cpu(), {}, 0
        for name, shape in zip(self.names, self.shapes):
            k = int(np.prod(shape))
            out[name] = ema[at:at + k].view(shape).clone()
            at += k
        return out

    def load_average(self, tensors):
        other = set(tensors) ^ set(self.names)
        if other:
            sys.exit("these weights don't fit the recipe, see %s; --keep says which layers to take" % min(other))
        for name, p, at in self._spans():
            self.flat[at:at + p].copy_(tensors[name].reshape(-1).to(self.flat.device))
        self.ema.copy_(self.flat)

    def _spans(self):
        at = 0
        for name, shape in zip(self.names, self.shapes):
            k = int(np.prod(shape))
            yield name, k, at
            at += k


# ---- one step -------------------------------------------------------------------------------------------------------

class Step:
    """Forward and backward of one batch into the flat gradient; a CUDA graph when asked and possible."""

    def __init__(self, model, flat, recipe, device, scan, wrap, log, judged_by=None, teachers=()):
        self.model, self.flat, self.scan, self.log, self.device, self.teachers = model, flat, scan, log, device, teachers
        wrapped = lambda pieces: {k: f if k in recipe["plain"] else wrap(f) for k, f in pieces.items()}
        self.pieces = wrapped(layers.PIECES)
        self.loss = losses.Loss(recipe, device, wrapped(losses.PIECES), judged_by)
        self.dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
        self.qat, self.graph, self.parts, self.batch = None, None, None, None

    @torch.no_grad()
    def lesson(self, noisy, clean):
        """The mean of what the teachers make of it: as every Denoiser's output in place in time, whatever their delays. Each
        hears it at its own rate; what isn't below half of every one's is clean's, and what is below `taught_from`."""
        rate, low = self.model.config["rate"], self.loss.weights["taught_from"]
        least, outputs, n = min(teacher.config["rate"] for teacher in self.teachers), [], noisy.shape[1]
        for teacher in self.teachers:
            own = teacher.config["rate"]
            heard = losses.narrow_band(noisy, rate // own)
            y = teacher(heard, self.scan, self.pieces, self.dtype)
            n = min(n, y.shape[1] * (rate // own))
            y = torch.nn.functional.pad(y, (0, heard.shape[1] - y.shape[1]))        # a crop's length suits an FFT
            outputs.append(losses.narrow_band(y, own // least))
        mean = sum(outputs) / len(outputs)
        return (losses.taught_within(mean, clean, rate, low) if low or least < rate else mean)[:, :n]

    def eager(self, noisy, clean):
        self.flat.grad.zero_()
        signals = [self.model(noisy, self.scan, self.pieces, self.dtype, self.qat), clean, noisy]
        if self.teachers:
            signals.append(self.lesson(noisy, clean))
        n = min(x.shape[1] for x in signals)
        value, parts = self.loss(*(x[:, :n] for x in signals))
        value.backward()
        return torch.cat((value.detach()[None], parts))

    def capture(self, *batch):
        """Record eager() as a graph, then check a replay against it; leaves self.graph None when it can't be had."""
        self.graph = None
        torch.cuda.synchronize()
        try:
            self.batch = [x.clone() for x in batch]
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(3):
                    self.eager(*self.batch)
            torch.cuda.current_stream().wait_stream(side)
            expected = self.eager(*self.batch).tolist()
            wanted = self.flat.grad.clone()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                self.parts = self.eager(*self.batch)
            self.flat.grad.zero_()
            graph.replay()
            got, difference = self.parts.tolist(), float((self.flat.grad - wanted).norm() / wanted.norm())
            if not abs(got[0] - expected[0]) <= 0.01 * abs(expected[0]) + 1e-3 or not difference <= 0.05:
                raise RuntimeError("replay gives loss %g for %g, gradients differ by %g" % (got[0], expected[0], difference))
            self.graph = graph
            self.log("graph: captured; replay agrees with eager (gradients to %.1e)" % difference)
        except Exception as e:
            self.log("graph: not to be had, going on without: %s" % str(e).strip().split("\n")[0][:300])
            self.parts = None
            torch.cuda.synchronize()

    def __call__(self, *batch):
        if self.graph is None:
            return self.eager(*batch)
        for kept, x in zip(self.batch, batch):
            kept.copy_(x)
        self.graph.replay()
        return self.parts


def check_scan(scan, device, dtype=torch.float32, d_state=16):
    """Worst relative difference from the step-by-step scan in float64, outputs and gradients; u, dt, z in dtype."""
    torch.manual_seed(5)
    shape, E = (2, 48), 64
    draw = lambda *s: torch.randn(*s, device=device).to(dtype).float()
    inputs = [draw(*shape, E), draw(*shape, E), -0.1 - 4 * torch.rand(E, d_state, device=device), draw(*shape, d_state),
              draw(*shape, d_state), draw(E), draw(*shape, E), draw(E) - 2]
    g, results = draw(*shape, E), []
    for f, kind in ((selective_scan_reference, torch.float64), (scan, dtype)):
        wide = torch.promote_types(kind, torch.float32)
        v = [x.clone().to(kind if i in (0, 1, 6) else wide).requires_grad_() for i, x in enumerate(inputs)]
        y = f(v[0], v[1], v[2], v[3], v[4], D=v[5], z=v[6], dt_bias=v[7])
        (y * g.to(y.dtype)).sum().backward()
        results.append([y.detach()] + [x.grad for x in v])
    return max(float((a - b.double()).norm() / a.norm()) for a, b in zip(*results))


def time_scan(scan, device, shape, backward=True, dtype=torch.bfloat16):
    """Median milliseconds of forward, or of forward and backward, at shape (batch, length, channels, d_state)."""
    B, L, E, N = shape
    draw = lambda *s: torch.randn(*s, device=device)
    v = [x.requires_grad_() for x in (draw(B, L, E).to(dtype), draw(B, L, E).to(dtype), draw(B, L, N), draw(B, L, N),
                                      draw(B, L, E).to(dtype), draw(E), draw(E) - 4)]
    A = (-torch.arange(1.0, N + 1, device=device)).repeat(E, 1).requires_grad_()
    g, times = draw(B, L, E).to(dtype), []
    for _ in range(6):
        torch.cuda.synchronize()
        t = time.time()
        y = scan(v[0], v[1], A, v[2], v[3], D=v[5], z=v[4], dt_bias=v[6])
        if backward:
            torch.autograd.grad(y, [*v, A], g)
        torch.cuda.synchronize()
        times.append(1e3 * (time.time() - t))
    return sorted(times)[2]


def choose_scan(kind, device, shape, log):
    """The scan asked for, or with 'auto' the fastest that is right here; else the next best thing."""
    if device.type != "cuda":
        wanted = ["torch"]
    else:
        wanted = ["cuda", "triton16", "triton32"] if kind == "auto" else [kind, "triton32", "torch"]
    best = None
    for k in dict.fromkeys(wanted):
        try:
            scan = layers.make_scan(k)
            worst, rough = check_scan(scan, device), check_scan(scan, device, torch.bfloat16)
            if not worst <= 1e-4 or not rough <= 2e-2:
                raise RuntimeError("differs from the reference by %g, in bf16 by %g" % (worst, rough))
            ms = time_scan(scan, device, shape) if device.type == "cuda" else 0.0
            log("scan: %s is within %.1e of the reference (bf16 %.1e)%s" % (
                k, worst, rough, "; %.2f ms forward and backward" % ms if ms else ""))
            if best is None or ms < best[0]:
                best = ms, k, scan
            if kind != "auto":
                break
        except Exception as e:
            log("scan: %s not to be had: %s" % (k, str(e).strip().split("\n")[0][:300]))
    if best is None:
        log("scan: plain PyTorch")
        return "torch", layers.make_scan("torch")
    return best[1:]


def scan_shape(recipe):
    c = layers.complete(recipe)
    m = dict(mixing.DEFAULTS, **recipe)
    return m["batch"], int(m["seconds"] * c["rate"] / c["hop"]), c["expand"] * c["d_model"], c["d_state"]


# ---- the run --------------------------------------------------------------------------------------------------------

def learning_rate(recipe, step, progress):
    warm = min(1.0, (step + 1) / recipe["warmup"])
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return warm * (recipe["lr_floor"] + (recipe["lr"] - recipe["lr_floor"]) * cosine)


def save(path, value):
    torch.save(value, path + ".tmp")
    os.replace(path + ".tmp", path)


def sizes_of(config):
    """layers.DEFAULTS' sizes, from a model file's config."""
    rows = config["layers"]
    first = {row["type"]: row for row in reversed(rows)}
    mamba = {k: first["mamba"][k] for k in ("d_model", "d_state", "d_conv", "expand", "dt_rank")}
    return dict(mamba, rate=config["rate"], window=config["window"], hop=config["hop"], taps=first["filter"]["taps"],
                compress=first["stft"]["compress"], n_layer=sum(row["type"] == "mamba" for row in rows))


def read_model(path):
    """-> layers.DEFAULTS' sizes, {name: tensor} of an ema.pt or a model file."""
    if path.endswith(".safetensors"):
        config, arrays = reference.read_safetensors(path)
        return sizes_of(config), {k: torch.from_numpy(np.array(v)) for k, v in arrays.items()}
    checkpoint = torch.load(path, map_location="cpu")
    return checkpoint["config"], {k: v.float() for k, v in checkpoint["tensors"].items()}


def read_teacher(path, rate, device):
    """The denoiser of an ema.pt or a model file, of whatever sizes, that learns no more; its rate divides the learner's."""
    config, tensors = read_model(path)
    if rate % config["rate"]:
        sys.exit("%s is of %d Hz: it can't teach one of %d" % (path, config["rate"], rate))
    teacher = layers.Denoiser(config).to(device)
    teacher.load_state_dict(tensors)
    return teacher.requires_grad_(False)


def read_weights(path, keep, recipe, memory=None):
    """{name: tensor} of an ema.pt or a model file, for recipe's transform if theirs is another; keep: the Mamba layers
    to take, in order (None: all); memory: what their states may remember, in seconds (None: what they do)."""
    config, tensors = read_model(path)
    c = layers.complete(recipe)
    if any(config[key] != c[key] for key in ("rate", "window", "hop", "taps")):
        tensors = warm.adapt(tensors, config, c)
    if memory:
        tensors = warm.forget(tensors, c, memory)
    if keep is None:
        return tensors
    prefix = "backbone.layers."
    taken = {k: v for k, v in tensors.items() if not k.startswith(prefix)}
    for new, old in enumerate(keep):
        start = "%s%d." % (prefix, old)
        taken.update({"%s%d.%s" % (prefix, new, k[len(start):]): v for k, v in tensors.items() if k.startswith(start)})
    return taken


class Run:
    def __init__(self, args, recipe):
        self.args, self.recipe = args, recipe
        self.rank, self.world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        cuda = torch.cuda.is_available() and args.device != "cpu"
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")
        if cuda:
            torch.cuda.set_device(self.device)
        if self.world > 1:
            from torch import distributed
            self.dist = distributed
            self.dist.init_process_group("nccl" if cuda else "gloo")
        os.makedirs(args.out, exist_ok=True)
        self.log = Log(os.path.join(args.out, "log.txt"), quiet=self.rank > 0)
        self.log("start: %s on %s, torch %s, %d process(es)" % (
            recipe["name"], torch.cuda.get_device_name() if cuda else "cpu", torch.__version__, self.world))
        torch.manual_seed(recipe["seed"])                   # the same initial weights on every rank
        self.model = layers.Denoiser(recipe).to(self.device)
        wrap = compiler(recipe["compile"], self.log)
        self.flat = Flat(self.model, recipe, self.device, wrap)
        _, scan = choose_scan(recipe["scan"], self.device, scan_shape(recipe), self.log)
        judged_by = judge.Judge(args.judge, self.device) if args.judge else None
        teachers = [read_teacher(path, self.model.config["rate"], self.device) for path in args.teacher]
        self.step = Step(self.model, self.flat, recipe, self.device, scan, wrap, self.log, judged_by, teachers)
        self.count, self.spent, self.heard = 0, 0.0, 0.0
        self._restore()
        torch.manual_seed(recipe["seed"] * 1000 + self.rank + 17 * self.count)
        self.rate = self.model.config["rate"]
        self.mix = mixing.Mix(recipe, self.rate, self.device, wrap)
        self.pool = data.Pool(args.data or [], self.rate, self.device, recipe["speech_hours"], recipe["noise_hours"],
                              recipe["narrow"], log=self.log, cache=args.cache)
        if args.data:
            self.pool.poll(wait=True)
        else:
            self.pool.add_synthetic()
        while not self.pool.speech.rows or not self.pool.noise.rows:
            self.log("data: nothing to train on yet under %s; waiting" % args.data)
            time.sleep(5)
            self.pool.poll(wait=True)
        self.lr = torch.zeros((), device=self.device)
        self.log("model: %d parameters; batch %d x %.2f s" % (self.flat.flat.numel(), self.mix.batch, self.mix.n / self.rate))

    def _restore(self):
        full = os.path.join(self.args.out, "full.pt")
        if self.args.resume and os.path.exists(full):
            s = torch.load(full, map_location=self.device)
            for key in ("flat", "m", "v", "ema", "state"):
                getattr(self.flat, key).copy_(s[key])
            self.count, self.spent, self.heard = s["count"], s["spent"], s["heard"]
            self.log("resume: step %d, %.1f minutes in" % (self.count, self.spent / 60))
        elif self.args.init:
            tensors = read_weights(self.args.init, self.args.keep, self.recipe, self.args.memory)
            self.flat.load_average(warm.grown(tensors, self.model))
            self.log("init: weights from %s%s" % (self.args.init, ", layers %s" % self.args.keep if self.args.keep else ""))

    def elapsed(self):
        return self.spent + time.time() - T0

    def save(self):
        speech_hours, noise_hours = self.pool.hours()
        meta = dict(recipe=self.recipe, config=layers.complete(self.recipe), count=self.count, heard=self.heard,
                    spent=self.elapsed(), speech_hours=speech_hours, noise_hours=noise_hours)
        average = self.flat.average()
        if self.args.memory:
            average = warm.forget(average, self.recipe, self.args.memory)
        save(os.path.join(self.args.out, "ema.pt"), dict(meta, tensors=average))
        f = self.flat
        save(os.path.join(self.args.out, "full.pt"),
             dict(meta, flat=f.flat, m=f.m, v=f.v, ema=f.ema, state=f.state))

    @torch.no_grad()
    def forget(self):
        """Keep the states' memory within --memory, in place."""
        for block in self.model.backbone.layers:
            m = block.mixer
            m.A_log.copy_(torch.maximum(m.A_log, warm.least_decay(m.dt_proj.bias, self.recipe, self.args.memory)[:, None]))

    def one(self):
        noisy, clean = self.mix(self.pool)
        parts = self.step(noisy, clean)
        self.lr.fill_(learning_rate(self.recipe, self.count, self.elapsed() / (60 * self.recipe["minutes"])))
        if self.world > 1:
            self.flat.sent[-1] = self.lr
            self.dist.all_reduce(self.flat.sent)
            self.flat.sent.div_(self.world)
            self.lr.copy_(self.flat.sent[-1])
        self.flat.update(self.lr)
        if self.args.memory:
            self.forget()
        self.count += 1
        self.heard += self.mix.batch * self.mix.n / self.rate * self.world
        return parts

    def settle(self):
        """Run the first steps in the asked-for way; what fails falls back before the clock has run far."""
        noisy, clean = self.mix(self.pool)
        try:
            self.step.eager(noisy, clean)
        except Exception as e:
            self.log("step: compiled pieces fail (%s); going on without compiling" % str(e).strip().split("\n")[0][:300])
            self.step.pieces, self.step.loss.pieces = dict(layers.PIECES), dict(losses.PIECES)
            self.step.eager(noisy, clean)
        if self.recipe["graph"] and self.device.type == "cuda":
            self.step.capture(noisy, clean)
        self.log("settled: first step done")

    def stop(self):
        over = self.elapsed() >= 60 * self.recipe["minutes"] or self.count >= self.args.steps
        if self.world > 1:
            if self.count % 10:
                return False
            flag = torch.tensor([float(over)], device=self.device)
            self.dist.broadcast(flag, 0)
            over = bool(flag.item())
        return over

    def loop(self):
        r, cuda = self.recipe, self.device.type == "cuda"
        validator = validate.Validator(self.args.val, self.rate, self.model.config["hop"], self.device, self.log, self.args.out) if self.args.val and not self.rank else None
        self.settle()
        kept, events, since, heard = [], [], time.time(), self.heard
        next_save, next_check = time.time() + r["save_seconds"], time.time() + r["validate_seconds"]
        while not self.stop():
            if self.count % r["poll_steps"] == 0 and self.args.data:
                self.pool.poll()
            if r["qat"] and self.step.qat is None and self.elapsed() > (1 - r["qat"]) * 60 * r["minutes"]:
                self.log("qat: int8 rounding from here on")
                self.step.qat = torch.ones((), device=self.device)
                if self.step.graph is not None:
                    self.step.capture(*self.mix(self.pool))
            kept.append(self.one().clone())
            if cuda:                            # stay at most four steps ahead of the device
                events.append(torch.cuda.Event())
                events[-1].record()
                if len(events) > 4:
                    events.pop(0).synchronize()
            now = time.time()
            if now - since >= r["log_seconds"]:
                mean = torch.stack(kept).mean(0).tolist()
                state = self.flat.state.tolist()
                self.log("step %6d  %6.0f audio-s/s  loss %.4f  mag %.4f  cpx %.4f  rem %.4f  begun %.3f  snr %5.2f  ear %.3f  crisp %.2f  ovrl %.2f  norm %.2f "
                         "(q90 %.2f, skipped %d)  lr %.2e" % (self.count, (self.heard - heard) / (time.time() - since), *mean,
                                                         state[2], state[1], state[3], float(self.lr)))
                kept, since, heard = [], time.time(), self.heard
            if not self.rank and now >= next_save:
                self.save()
                next_save = time.time() + r["save_seconds"]
            if validator and now >= next_check:
                self.check(validator)
                next_check = time.time() + r["validate_seconds"]
                since, heard, kept = time.time(), self.heard, []
        if not self.rank:
            self.save()
            self.finish()
            if validator:
                self.check(validator)
            self.log("done: %d steps, %.1f audio hours" % (self.count, self.heard / 3600))
        if self.world > 1:
            self.dist.destroy_process_group()

    @torch.no_grad()
    def fixed_loss(self, batches=4):
        """The averaged weights' loss on mixtures that are the same at every call."""
        kept = torch.random.get_rng_state()
        torch.manual_seed(99)
        pairs = [self.mix(self.pool) for _ in range(batches)]
        torch.random.set_rng_state(kept)
        self.flat.swap_in_average()
        estimates = [self.model(noisy, self.step.scan) for noisy, _ in pairs]
        self.flat.swap_back()
        return sum(float(self.step.loss(e, c[:, :e.shape[1]], x[:, :e.shape[1]])[0]) for e, (x, c) in zip(estimates, pairs)) / batches

    def check(self, validator):
        try:
            self.flat.swap_in_average()
            validator(self.model, self.step.scan, self.step.dtype)
        except Exception as e:
            self.log("validate: failed: %s" % str(e).strip().split("\n")[0][:200])
        finally:
            self.flat.swap_back()

    def finish(self):
        for dtype in ("f32", "int8"):
            path = os.path.join(self.args.out, "%s-%s.safetensors" % (self.recipe["name"], dtype))
            export.export(os.path.join(self.args.out, "ema.pt"), path, int8=dtype == "int8")
            self.log("export: %s, %d bytes" % (path, os.path.getsize(path)))


def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--recipe", default="denoise-16k", choices=sorted(RECIPES))
    p.add_argument("--data", nargs="+", help="parts, or folders of parts; looked at again as training goes on")
    p.add_argument("--val", help="folder with noisy/*.wav and clean/*.wav")
    p.add_argument("--out", default="run")
    p.add_argument("--cache", help="where decoded audio is kept (default: a folder in the temporary directory)")
    p.add_argument("--minutes", type=float)
    p.add_argument("--steps", type=int, default=1 << 60)
    p.add_argument("--batch", type=int)
    p.add_argument("--scan", choices=SCANS)
    p.add_argument("--device", choices=("auto", "cpu"), default="auto")
    p.add_argument("--no-compile", action="store_true")
    p.add_argument("--no-graph", action="store_true")
    p.add_argument("--resume", action="store_true", help="go on from OUT/full.pt if it is there")
    p.add_argument("--init", help="start from the weights of an ema.pt or a model file; layers and channels it lacks add nothing at first")
    p.add_argument("--keep", type=int, nargs="+", metavar="LAYER", help="which of --init's Mamba layers to start from")
    p.add_argument("--memory", type=float, metavar="SECONDS", help="let states remember no longer than this, --init's and trained ones")
    p.add_argument("--judge", metavar="ONNX", help="DNSMOS's sig_bak_ovr.onnx, for recipes that weigh `judged`")
    p.add_argument("--teacher", nargs="+", metavar="MODEL", default=[],
                   help="an ema.pt or model files whose outputs' mean is a target, too, for recipes that weigh `taught`")
    p.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="override a recipe's key (value as JSON)")
    args = p.parse_args(argv)
    recipe = dict(RECIPES[args.recipe])
    for key in ("minutes", "batch", "scan"):
        if getattr(args, key) is not None:
            recipe[key] = getattr(args, key)
    recipe["compile"] &= not args.no_compile
    recipe["graph"] &= not args.no_graph
    known = {**layers.DEFAULTS, **mixing.DEFAULTS, **recipe, **losses.WEIGHTS}
    for item in args.set:
        key, _, value = item.partition("=")
        if key not in known:
            p.error("no such key: %s; there are %s" % (key, ", ".join(sorted(known))))
        recipe[key] = json.loads(value)
    if recipe.get("judged") and not args.judge:
        p.error("recipe %s is judged by DNSMOS: name its file by --judge" % recipe["name"])
    if bool(recipe.get("taught")) != bool(args.teacher):
        p.error("--teacher wants `taught`, from 0 to 1, and that wants a --teacher")
    return args, recipe


if __name__ == "__main__":
    a, r = parse()
    run = Run(a, r)
    begin = run.fixed_loss() if a.recipe == "smoke" else 0.0
    run.loop()
    if a.recipe == "smoke" and not run.rank:
        end = run.fixed_loss()
        print("smoke: loss on the same mixtures %.4f before, %.4f after: %s" % (
            begin, end, "fell" if end < 0.9 * begin else "did NOT fall"))
        sys.exit(0 if end < 0.9 * begin else 1)
