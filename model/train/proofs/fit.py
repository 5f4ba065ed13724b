#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Trains token models, several at once, and says how often they are right.

    python3 fit.py induction-heads --out RUN --run seed=1 --run seed=2,lr=3e-3 [--minutes 8] [--set batch=8]
    python3 fit.py selective-copying --out RUN --run kind=mamba --run kind=s6 --run kind=s4d,d_state=64
    python3 fit.py log-lines --data FILE --out RUN

Each --run is the task's recipe with a few keys changed, and is called by them. On a GPU a whole training step (data,
forward, backward, Adam) is one CUDA graph, and each run replays its own on a stream of its own. A run that was there
before goes on from its checkpoint, on data of a new seed.
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

import tasks  # noqa: E402
import tokens  # noqa: E402  (also says where these two are)
import layers  # noqa: E402
import train  # noqa: E402

# lengths: [[steps of a sequence, training steps], ...]; the last one lasts until `steps`
COMMON = dict(seed=1, beta2=0.999, warmup=0, decay=0.0, clip=0.0, tf32=False, compile=True)
RECIPES = {
    "selective-copying": dict(COMMON, batch=64, lengths=[[4096, 0]], steps=400000, lr=1e-4, clip=1.0, tf32=True,
                              enough=0.9995),
    "induction-heads": dict(COMMON, batch=8, lengths=[[256, 0]], steps=204800, lr=1e-3, enough=2.0),
    "log-lines": dict(COMMON, vocabulary=256, d_model=128, n_layer=3, batch=32, lengths=[[2048, 0]], steps=20000, lr=2e-3,
                      warmup=300, decay=0.5, clip=1.0, tf32=True, enough=2.0),
}


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
        self.count, self.spent, self.graph, self.length, self.done = 0, 0.0, None, None, False
        self._restore()
        self.generator = torch.Generator(device)
        self.generator.manual_seed(1000003 * recipe["seed"] + self.count)
        self.warm = torch.tensor(float(self.count), device=device)
        self.meter = Meter(device)

    def _adam(self):
        r, p = self.recipe, list(self.model.parameters())
        options = dict(betas=(0.9, r["beta2"]))
        if self.cuda:
            return torch.optim.Adam(p, torch.tensor(r["lr"], device=self.device), capturable=True, fused=True, **options)
        return torch.optim.Adam(p, r["lr"], **options)

    def _restore(self):
        if os.path.exists(self.path):
            s = torch.load(self.path, map_location=self.device)
            self.model.load_state_dict(s["model"])
            self.optimiser.load_state_dict(s["optimiser"])
            self.count, self.spent = s["count"], s["spent"]
            self.log("%s: goes on from step %d" % (self.name, self.count))

    def save(self):
        if self.cuda:
            self.stream.synchronize()
        train.save(self.path, dict(recipe=self.recipe, task=self.task, config=self.model.config, count=self.count,
                                   spent=self.spent + time.time() - T0, model=self.model.state_dict(),
                                   optimiser=self.optimiser.state_dict()))

    def due_length(self):
        """The sequence length of the recipe's present stage."""
        end = 0
        for length, steps in self.recipe["lengths"]:
            end += steps
            if self.count < end:
                return length
        return length

    def set_rate(self):
        """Linear warm-up, then constant, then, over the last `decay` of the steps, linear to nothing."""
        r = self.recipe
        self.warm += 1
        share = 1.0 - self.warm / r["steps"]
        rate = r["lr"] * torch.clamp(self.warm / max(r["warmup"], 1), max=1.0)
        if r["decay"]:
            rate = rate * torch.clamp(share / r["decay"], 0.0, 1.0)
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
        self.length, self.graph = self.due_length(), None
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
        if self.length != self.due_length():
            self.prepare()
        with self.on_stream():
            self.eager() if self.graph is None else self.graph.replay()
        self.count += 1

    def on_stream(self):
        return torch.cuda.stream(self.stream) if self.cuda else contextlib.nullcontext()

    def report(self, seconds):
        with self.on_stream():
            loss, right, n = self.meter.read()
        self.done = self.done or self.count >= self.recipe["steps"] or right >= self.recipe["enough"]
        if n:
            self.log("%s: step %d, length %d, %.0f steps/s, loss %.4f, right %.4f" % (
                self.name, self.count, self.length, n / max(seconds, 1e-9), loss, right))


def fit(runs, end, log_seconds, save_seconds, log):
    """Train all runs in turn until each is done or the clock says `end`."""
    for run in runs:
        begun = time.time()
        run.prepare()
        log("%s: ready after %.1f s" % (run.name, time.time() - begun))
    turns, said, saved = 0, time.time(), time.time()
    while time.time() < end and not all(run.done for run in runs):
        for run in runs:
            if not run.done:
                run.step()
        turns += 1
        if turns % 16 == 0 and runs[0].cuda:        # stay near the device, so that the clock means something
            for run in runs:
                run.stream.synchronize()
        now = time.time()
        if now - said >= log_seconds:
            for run in runs:
                if not run.done:
                    run.report(time.time() - said)
            said = time.time()
        if now - saved >= save_seconds:
            for run in runs:
                run.save()
            saved = time.time()
    for run in runs:
        if not run.done:
            run.report(time.time() - said)
        run.save()


# ---- how often is it right? -----------------------------------------------------------------------------------------

@torch.no_grad()
def score(model, task, length, sequences, device, scan, seed=12345, at_once=1 << 20):
    """(right answers, answers) over fresh sequences of this length; `at_once` steps of them in a call."""
    generator = torch.Generator(device)
    generator.manual_seed(seed + length)
    batch = max(1, min(sequences, at_once // length))
    right = torch.zeros((), dtype=torch.int64, device=device)
    answers = 0
    for _ in range(-(-sequences // batch)):
        inputs, target = tasks.TASKS[task](batch, length, device, generator)
        answer = model.logits(inputs, scan, last=target.shape[1]).argmax(-1)
        right += (answer == target).sum()
        answers += target.numel()
    return int(right), answers


def evaluate(runs, lengths, sequences, seconds, log, out):
    """Score every run at every length, shortest first, as far as the time goes; a JSON line each."""
    end = time.time() + seconds
    with open(os.path.join(out, "scores.jsonl"), "a") as file:
        for length in lengths:
            for run in runs:
                if time.time() > end:
                    log("evaluation: out of time at length %d" % length)
                    return
                right, answers = score(run.model, run.task, length, sequences, run.device, run.scan)
                log("%s: length %d: %d of %d right, %.3f %%" % (run.name, length, right, answers, 100 * right / answers))
                file.write(json.dumps(dict(run=run.name, task=run.task, step=run.count, length=length, right=right,
                                           answers=answers)) + "\n")
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
    torch.backends.cuda.matmul.allow_tf32 = common["tf32"]
    pieces = {k: wrap(f) for k, f in tokens.PIECES.items()}
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
    evaluate(runs, a.score, a.sequences, 60 * a.score_minutes, log, a.out)


if __name__ == "__main__":
    main()
