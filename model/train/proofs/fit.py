#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Trains token models, several at once, and says how often they are right.

    python3 fit.py induction-heads --out RUN --run seed=1 --run seed=2,lr=3e-3 [--minutes 8] [--set batch=8]
    python3 fit.py selective-copying --out RUN --run kind=mamba --run kind=s6 --run kind=s4d,d_state=64
    python3 fit.py log-lines --data FILE --out RUN

Each --run is the task's recipe with a few keys changed, and is called by them. On a GPU a whole training step (data,
forward, backward, Adam) is one CUDA graph, and each run replays its own on a stream of its own. A run that was there
before goes on from its checkpoint, on data of a new seed.

How far a run is, 0 to 1, is the larger share of its steps and of this process's minutes: growing lengths and the decay of
the rate follow it, so that a run ends as its recipe says on any machine, with fewer steps on a slower one.
"""
import argparse
import contextlib
import json
import os
import sys
import time

T0 = time.time()
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402

import tasks  # noqa: E402
import tokens  # noqa: E402  (also says where these two are)
import layers  # noqa: E402
import train  # noqa: E402

# stages  [[length, until, enough], ...]: sequences of `length` steps until the run is so far, or this share is right
# warmup  steps; decay: the last share of the run, over which the rate falls linearly to nothing
# check   null, or [length, sequences] to score every 30 s: the best weights are kept
COMMON = dict(seed=1, beta2=0.999, eps=1e-8, warmup=0, decay=0.0, clip=0.0, check=None, tf32=False, compile=True)
RECIPES = {
    "selective-copying": dict(COMMON, batch=64, stages=[[4096, 1, 0.9998]], steps=400000, lr=1e-4, clip=1.0, tf32=True),
    "induction-heads": dict(COMMON, batch=8, stages=[[256, 1, 2]], steps=204800, lr=1e-3, check=[1 << 20, 12]),
    "log-lines": dict(COMMON, vocabulary=256, d_model=160, n_layer=4, batch=16, stages=[[2048, 0.25, 2], [8192, 1, 2]], steps=60000, lr=2e-3,
                      warmup=300, decay=0.6, clip=1.0, tf32=True),
}
NOT_COMPILED = ("s4d_kernel",)      # the compiler's gradient of it takes ten times as long
CHECK_SECONDS = 30


class Meter:
    """Sums of loss and share of right answers, kept on the device until they are read."""

    def __init__(self, device):
        self.sums = torch.zeros(3, device=device)

    def add(self, loss, right):
        self.sums += torch.stack((loss, right, torch.ones_like(loss)))

    def read(self):
        """Mean loss, mean share and number of batches since the last reading."""
        loss, right, n = self.sums.tolist()
        self.sums.zero_()
        return loss / max(n, 1), right / max(n, 1), int(n)


class Run:
    """One model, its optimiser and its data; `step` trains once, by replaying a graph where there is a GPU."""

    def __init__(self, name, recipe, task, out, device, scan, pieces, log):
        self.name, self.recipe, self.task, self.device = name, recipe, task, device
        self.path, self.scan, self.pieces, self.log = os.path.join(out, name + ".pt"), scan, pieces, log
        self.cuda = device.type == "cuda"
        self.stream = torch.cuda.Stream() if self.cuda else None
        torch.manual_seed(recipe["seed"])
        self.model = tokens.TokenModel({k: v for k, v in recipe.items() if k in tokens.DEFAULTS}).to(device)
        self.optimiser = self._adam()
        self.count, self.spent, self.best = 0, 0.0, None
        self._restore()
        self.generator = torch.Generator(device)
        self.generator.manual_seed(1000003 * recipe["seed"] + self.count)
        self.graph, self.length, self.stage, self.right, self.done = None, None, 0, 0.0, False
        self.warm, self.left = torch.tensor(float(self.count), device=device), torch.ones((), device=device)
        self.meter = Meter(device)

    def _adam(self):
        r, p = self.recipe, list(self.model.parameters())
        options = dict(betas=(0.9, r["beta2"]), eps=r["eps"])
        if self.cuda:
            return torch.optim.Adam(p, torch.tensor(r["lr"], device=self.device), capturable=True, fused=True, **options)
        return torch.optim.Adam(p, r["lr"], **options)

    def _restore(self):
        if os.path.exists(self.path):
            s = torch.load(self.path, map_location=self.device)
            self.model.load_state_dict(s["model"])
            self.optimiser.load_state_dict(s["optimiser"])
            self.count, self.spent, self.best = s["count"], s["spent"], s["best"]
            self.log("%s: goes on from step %d" % (self.name, self.count))

    def save(self):
        if self.cuda:
            self.stream.synchronize()
        train.save(self.path, dict(recipe=self.recipe, task=self.task, config=self.model.config, count=self.count,
                                   spent=self.spent + time.time() - T0, model=self.model.state_dict(),
                                   best=self.best, optimiser=self.optimiser.state_dict()))

    def move(self, share):
        """The minutes are so far gone: tell the rate, and see whether the next length is due."""
        progress = min(1.0, max(share, self.count / self.recipe["steps"]))
        with self.on_stream():
            self.left.fill_(1.0 - progress)
        _, until, enough = self.recipe["stages"][self.stage]
        over = progress >= until or self.right >= enough
        if over and self.stage + 1 < len(self.recipe["stages"]):
            self.stage, self.right = self.stage + 1, 0.0
        elif over:
            self.done = True

    def set_rate(self):
        """Linear warm-up, then constant, then, over the last `decay` of the run, linear to nothing."""
        r = self.recipe
        self.warm += 1
        rate = r["lr"] * torch.clamp(self.warm / max(r["warmup"], 1), max=1.0)
        if r["decay"]:
            rate = rate * torch.clamp(self.left / r["decay"], 0.0, 1.0)
        for group in self.optimiser.param_groups:
            if self.cuda:
                group["lr"].copy_(rate)
            else:
                group["lr"] = float(rate)

    def eager(self):
        r = self.recipe
        inputs, target = tasks.TASKS[self.task](r["batch"], self.length, self.device, self.generator)
        loss, right = self.model.loss(inputs, target, self.scan, self.pieces)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        if r["clip"]:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), r["clip"])
        self.set_rate()
        self.optimiser.step()
        self.meter.add(loss.detach(), right)

    def prepare(self):
        """Warm up at the length that is due, which trains too, and record the graph."""
        self.length, self.graph = self.recipe["stages"][self.stage][0], None
        if not self.cuda:
            return
        self.stream.wait_stream(torch.cuda.current_stream())
        with self.on_stream():
            for _ in range(3):
                self.eager()
        self.count += 3
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph, stream=self.stream):
            self.eager()
        self.graph = graph
        torch.cuda.synchronize()

    def step(self):
        if self.length != self.recipe["stages"][self.stage][0]:
            self.prepare()
        with self.on_stream():
            self.eager() if self.graph is None else self.graph.replay()
        self.count += 1

    def on_stream(self):
        return torch.cuda.stream(self.stream) if self.cuda else contextlib.nullcontext()

    def report(self, seconds):
        with self.on_stream():
            loss, right, n = self.meter.read()
        if n:
            self.right = right
            self.log("%s: step %d, length %d, %.0f steps/s, loss %.4g, right %.4f" % (
                self.name, self.count, self.length, n / max(seconds, 1e-9), loss, right))

    def check(self):
        """Keep the weights if they are the best so far at the recipe's `check`."""
        if not self.recipe["check"] or self.right < 0.99:
            return
        length, sequences = self.recipe["check"]
        with self.on_stream():
            right, answers, loss = score(self.model, self.task, length, sequences, self.device, self.scan, seed=54321)
            if self.best is None or (right, -loss) >= (self.best["right"], -self.best["loss"]):
                self.best = dict(right=right, loss=loss, count=self.count,
                                 model={k: v.clone() for k, v in self.model.state_dict().items()})
        self.log("%s: step %d, check at length %d: %d of %d right, loss %.4g" % (self.name, self.count, length, right,
                                                                               answers, loss))

    def take_best(self):
        if self.best:
            self.model.load_state_dict(self.best["model"])


class Every:
    """due: once in so many seconds; since: the seconds since the last time."""

    def __init__(self, seconds):
        self.seconds, self.last = seconds, time.time()

    def due(self):
        self.since = time.time() - self.last
        if self.since < self.seconds:
            return False
        self.last = time.time()
        return True


def fit(runs, end, log_seconds, save_seconds, log):
    """Train all runs in turn until each is done or the clock says `end`."""
    begun = time.time()
    for run in runs:
        run.prepare()
        log("%s: ready after %.1f s" % (run.name, time.time() - begun))
    begun, turns, training = time.time(), 0, list(runs)
    say, check, save = Every(log_seconds), Every(CHECK_SECONDS), Every(save_seconds)
    while training and time.time() < end:
        for run in training:
            run.step()
        turns += 1
        if turns % 16 and runs[0].cuda:        # stay near the device, so that the clock means something
            continue
        for run in training:
            if run.cuda:
                run.stream.synchronize()
            run.move((time.time() - begun) / max(end - begun, 1e-9))
        if say.due():
            for run in training:
                run.report(say.since)
        if check.due():
            for run in training:
                run.check()
            if runs[0].cuda:
                torch.cuda.empty_cache()        # a check takes gigabytes, on each run's stream its own
        if save.due():
            for run in runs:
                run.save()
        training = [run for run in training if not run.done]
    say.due()
    for run in runs:
        run.report(say.since)
        run.check()
        run.save()


# ---- how often is it right? -----------------------------------------------------------------------------------------

@torch.no_grad()
def score(model, task, length, sequences, device, scan, seed=12345, at_once=1 << 20):
    """(right answers, answers, mean cross entropy) over fresh sequences of this length; `at_once` steps in a call."""
    generator = torch.Generator(device)
    generator.manual_seed(seed + length)
    batch = max(1, min(sequences, at_once // length))
    right, loss = torch.zeros((), dtype=torch.int64, device=device), torch.zeros((), device=device)
    answers = 0
    for _ in range(-(-sequences // batch)):
        inputs, target = tasks.TASKS[task](batch, length, device, generator)
        logits = model.logits(inputs, scan, last=target.shape[1])
        right += (logits.argmax(-1) == target).sum()
        loss += F.cross_entropy(logits.flatten(0, 1), target.flatten(), reduction="sum")
        answers += target.numel()
    return int(right), answers, float(loss) / answers


def evaluate(runs, lengths, sequences, seconds, log, out):
    """Score every run at every length, shortest first, as far as the time goes; a JSON line each."""
    end = time.time() + seconds
    with open(os.path.join(out, "scores.jsonl"), "a") as file:
        for length in lengths:
            for run in runs:
                if time.time() > end:
                    log("evaluation: out of time at length %d" % length)
                    return
                right, answers, _ = score(run.model, run.task, length, sequences, run.device, run.scan)
                log("%s: length %d: %d of %d right, %.3f %%" % (run.name, length, right, answers, 100 * right / answers))
                file.write(json.dumps(dict(run=run.name, task=run.task, step=run.best["count"] if run.best else run.count,
                                           length=length, right=right, answers=answers)) + "\n")
                file.flush()


# ---- the command ----------------------------------------------------------------------------------------------------

def overlay(recipe, text):
    """recipe with text's `key=value,...` (values as JSON, or else words) on top."""
    known, result = dict(tokens.DEFAULTS, **recipe), dict(recipe)
    for item in filter(None, text.split(";" if ";" in text else ",")):
        key, _, value = item.partition("=")
        if key not in known:
            sys.exit("no such key: %s; there are %s" % (key, ", ".join(sorted(known))))
        try:
            result[key] = json.loads(value)
        except ValueError:
            if not isinstance(known[key], str):
                sys.exit("%s: not a number: %s" % (key, value))
            result[key] = value
    return result


def parse(argv=None):
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("task", choices=sorted(RECIPES))
    p.add_argument("--data", help="the text of log-lines")
    p.add_argument("--out", default="run")
    p.add_argument("--run", action="append", metavar="KEY=VALUE,...", help="with semicolons where a value has commas")
    p.add_argument("--set", default="", metavar="KEY=VALUE,...", help="for every run")
    p.add_argument("--minutes", type=float, default=8.0, help="from the start of this process to the end of training")
    p.add_argument("--score", type=int, nargs="*", default=[], metavar="LENGTH", help="afterwards, at these lengths")
    p.add_argument("--sequences", type=int, default=2048, help="for each score")
    p.add_argument("--score-minutes", type=float, default=2.0)
    p.add_argument("--score-best", type=int, default=0, metavar="N", help="only the N best at their check")
    p.add_argument("--log-seconds", type=float, default=5.0)
    p.add_argument("--save-seconds", type=float, default=30.0)
    p.add_argument("--device", choices=("auto", "cpu"), default="auto")
    return p.parse_args(argv)


def main(argv=None):
    a = parse(argv)
    cuda = torch.cuda.is_available() and a.device != "cpu"
    device = torch.device("cuda" if cuda else "cpu")
    os.makedirs(a.out, exist_ok=True)
    log = train.Log(os.path.join(a.out, "log.txt"))
    common = overlay(RECIPES[a.task], a.set)
    wrap = train.compiler(common["compile"] and cuda, log)
    if common["compile"] and cuda:
        torch._dynamo.config.automatic_dynamic_shapes = False       # a kernel for each length
    torch.backends.cuda.matmul.allow_tf32 = common["tf32"]
    pieces = {k: f if k in NOT_COMPILED else wrap(f) for k, f in tokens.PIECES.items()}
    scan = layers.make_scan("cuda" if cuda else "torch")
    if a.data:
        tasks.TASKS[a.task] = tasks.Text(a.data, device)
    runs = [Run(text.replace("=", "").replace(",", "-").replace(";", "-") or "run", overlay(common, text), a.task, a.out,
                device, scan, pieces, log) for text in a.run or [""]]
    log("%s on %s, torch %s: %d runs, %d parameters the first" % (
        a.task, torch.cuda.get_device_name() if cuda else "cpu", torch.__version__, len(runs),
        sum(p.numel() for p in runs[0].model.parameters())))
    for run in runs:
        log("%s: %s" % (run.name, json.dumps(run.recipe)))
    fit(runs, T0 + 60 * a.minutes, a.log_seconds, a.save_seconds, log)
    torch.backends.cuda.matmul.allow_tf32 = False
    if a.score_best:
        runs = sorted((r for r in runs if r.best), key=lambda r: (-r.best["right"], r.best["loss"]))[:a.score_best]
    for run in runs:
        run.take_best()
    evaluate(runs, a.score, a.sequences, 60 * a.score_minutes, log, a.out)


if __name__ == "__main__":
    main()
