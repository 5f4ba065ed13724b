#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""Checks every piece of the trainer on this machine, then measures audio-seconds a second and where the time goes.

    python3 selftest.py [--seconds 150] [--batches 128 64 192] [--recipe denoise-16k]
"""
import argparse
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import numpy as np  # noqa: E402
import torch  # noqa: E402

import data  # noqa: E402
import export  # noqa: E402
import judge  # noqa: E402
import layers  # noqa: E402
import loss as losses  # noqa: E402
import mix  # noqa: E402
import reference  # noqa: E402
import train  # noqa: E402
import warm  # noqa: E402
from recipes import RECIPES  # noqa: E402
from scan import selective_scan_reference  # noqa: E402

T0 = time.time()
BAD = []


def say(text):
    print("%6.1f %s" % (time.time() - T0, text), flush=True)


def expect(what, value, limit):
    ok = value <= limit
    say("%s %s: %.3g (limit %g)" % ("ok  " if ok else "FAIL", what, value, limit))
    if not ok:
        BAD.append(what)


def clock(f, n=5):
    """Median milliseconds of f()."""
    sync = torch.cuda.synchronize if torch.cuda.is_available() else (lambda: None)
    f()
    sync()
    times = []
    for _ in range(n):
        t = time.time()
        f()
        sync()
        times.append(time.time() - t)
    return 1e3 * sorted(times)[n // 2]


def check_model(device, out):
    """layers.py against reference.py (the engine's meaning), through an exported file; and the gradients of its FFT."""
    for config in (dict(d_model=32, n_layer=2), dict(d_model=32, n_layer=2, hop=80, d_conv=7, taps=5)):
        check_transform(device, out, config)
    a = torch.randn(3, 320, device=device, dtype=torch.float64, requires_grad=True)
    g = torch.randn(3, 161, 2, device=device, dtype=torch.float64)
    ours, = torch.autograd.grad((layers.RealFFT.apply(a) * g).sum(), a)
    theirs, = torch.autograd.grad((torch.view_as_real(torch.fft.rfft(a)) * g).sum(), a)
    expect("gradient of the transform", float((ours - theirs).norm() / theirs.norm()), 1e-6)


def check_transform(device, out, config):
    torch.manual_seed(1)
    model = layers.Denoiser(config).to(device)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    tensors = {k: v.detach().cpu() for k, v in model.named_parameters()}
    torch.save(dict(tensors=tensors, config=model.config, recipe=dict(name="t"), count=0, heard=0, speech_hours=0,
                    noise_hours=0), out + ".pt")
    x = (0.1 * np.random.default_rng(0).standard_normal(160 * 50)).astype(np.float32)
    late, hop = model.config["window"] - model.config["hop"], model.config["hop"]
    for int8 in (False, True):
        export.export(out + ".pt", out, int8=int8)
        config, t = reference.read_safetensors(out)
        live = reference.run(config, t, x)
        expect("hops of %d: reference hop by hop against whole, int8=%d" % (hop, int8),
               np.abs(live - reference.whole(config, t, x)).max(), 1e-9)
        with torch.no_grad():
            for k, p in model.named_parameters():
                p.copy_(torch.from_numpy(np.array(t[k])))
            got = model(torch.from_numpy(x)[None].to(device), selective_scan_reference)[0].cpu().numpy()
        expect("hops of %d: layers against reference, int8=%d" % (hop, int8), np.abs(got - live[late:]).max() / np.abs(live).max(), 2e-5)


def check_warm(device):
    """A model of 16 kHz adapted to 48 kHz does below 8 kHz what it did."""
    torch.manual_seed(4)
    narrow = layers.Denoiser(dict(d_model=32, n_layer=2)).to(device)
    with torch.no_grad():
        for p in narrow.parameters():
            p.add_(0.05 * torch.randn_like(p))
    wide = layers.Denoiser(dict(d_model=32, n_layer=2, rate=48000, window=960, hop=480)).to(device)
    wide.load_state_dict(warm.adapt({k: p.detach().cpu() for k, p in narrow.named_parameters()}, narrow.config, wide.config))
    x = data.resample(0.1 * np.random.default_rng(6).standard_normal(8000), 8000, 48000).astype(np.float32)   # up to 4 kHz
    outputs = []
    for model, y in ((narrow, data.resample(x, 48000, 16000)), (wide, x)):
        with torch.no_grad():
            z = model(torch.from_numpy(np.float32(y))[None].to(device), selective_scan_reference)[0].cpu().numpy()
        outputs.append(data.resample(z, model.config["rate"], 16000)[1600:-1600])
    expect("48 kHz model made from one of 16 kHz", np.abs(outputs[1] - outputs[0]).max() / np.abs(outputs[0]).max(), 0.02)


def check_finer(device):
    """With nothing in its states, a model with half the hop is the mean of two of the first, half a hop apart."""
    torch.manual_seed(7)
    one = layers.Denoiser(dict(d_model=32, n_layer=2)).to(device)
    two = layers.Denoiser(dict(d_model=32, n_layer=2, hop=80, d_conv=7, taps=5)).to(device)
    with torch.no_grad():
        for name, p in one.named_parameters():
            p.add_(0.05 * torch.randn_like(p))
            if name.endswith("x_proj.weight"):
                p[-one.config["d_state"]:] = 0.0            # C
    two.load_state_dict(warm.adapt({k: p.detach().cpu() for k, p in one.named_parameters()}, one.config, two.config))
    x = 0.1 * torch.randn(1, 160 * 40, device=device)
    with torch.no_grad():
        first, second = (one(torch.nn.functional.pad(x, (k, 160 - k)), selective_scan_reference)[:, k:] for k in (0, 80))
        got = two(x, selective_scan_reference)
    n = got.shape[1]
    want = (first[:, :n] + second[:, :n]) / 2
    expect("half the hop made from a whole one", float((got - want).abs().max() / want.abs().max()), 1e-4)


def check_grown(device):
    """A deeper and wider model begins as the smaller one, and every weight of its blocks has something to learn."""
    torch.manual_seed(5)
    small = layers.Denoiser(dict(d_model=32, n_layer=2, d_state=8)).to(device)
    with torch.no_grad():
        for p in small.parameters():
            p.add_(0.05 * torch.randn_like(p))
    large = layers.Denoiser(dict(d_model=48, n_layer=3, d_state=12, dt_rank=4)).to(device)
    large.load_state_dict(warm.grown({k: p.detach().cpu() for k, p in small.named_parameters()}, large))
    x = 0.1 * torch.randn(1, 8000, device=device)
    want, got = (m(x, selective_scan_reference) for m in (small, large))
    expect("a larger model made from a smaller one", float((got - want).detach().abs().max() / want.detach().abs().max()), 1e-4)
    optimiser = torch.optim.SGD(large.parameters(), 1e-3)
    for _ in range(3):                  # what is read by zeros alone has no gradient before they have moved
        optimiser.zero_grad()
        large(x, selective_scan_reference).square().sum().backward()
        optimiser.step()
    expect("weights of its blocks that learn nothing", float(sum((p.grad == 0).sum() for p in large.backbone.parameters())), 0)


def check_golden():
    """reference.py against the answers of make_golden_layers.py: sensors to labels, tokens; also where time is irregular."""
    folder = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tests", "data")
    for name in ("golden_tag", "golden_tokens"):
        config, t = reference.read_safetensors(os.path.join(folder, name + ".safetensors"))
        _, io = reference.read_safetensors(os.path.join(folder, name + "_io.safetensors"))
        x, want, irregular = io["in"].reshape(-1), io["out"].reshape(-1), io["out_elapsed"].reshape(-1)
        expect(name + " hop by hop", np.abs(reference.run(config, t, x) - want).max(), 1e-5)
        expect(name + " whole", np.abs(reference.whole(config, t, x) - want).max(), 1e-5)
        expect(name + " with gaps", np.abs(reference.run(config, t, x, elapsed=io["elapsed"]) - irregular).max(), 1e-5)


def check_loss(device):
    """Finite values and gradients where a logarithm or a root could fail; nothing to pay for the target itself."""
    torch.manual_seed(2)
    a, b, silence = 0.1 * torch.randn(2, 16000, device=device), 0.1 * torch.randn(2, 16000, device=device), torch.zeros(2, 16000, device=device)
    measure, wide = losses.Loss({}, device), losses.Loss(dict(rate=48000, crisp=0.1), device)
    for name, estimate, clean, noisy in (("noise", a, b, a + b), ("silence for speech", silence, a, a + b), ("noise for silence", b, silence, b),
                                         ("silence", silence, silence, silence)):
        for cost in (measure, wide):
            e = estimate.clone().requires_grad_()
            value, parts = cost(e, clean, noisy)
            g, = torch.autograd.grad(value, e)
            expect("loss of %s finite at %d Hz" % (name, cost.rate), float((~torch.isfinite(parts)).sum() + (~torch.isfinite(g)).sum()), 0)
    spectrum = torch.fft.rfft(a)
    spectrum[:, a.shape[1] * 7900 // wide.rate:] *= 0.5     # of what is above 7.9 kHz
    off = [float(wide(e, a, a)[1][6]) for e in (a, torch.fft.irfft(spectrum))]
    expect("treble at half its height is 6 dB off", abs(off[0]) + abs(off[1] - 6.02), 0.1)
    parts = measure(a, a, a + b)[1].tolist()
    expect("loss of the target itself", sum(parts[:4]) + parts[5], 1e-3)
    word = torch.cat((1e-4 * a[:, :8000], 3 * a[:, 8000:]), 1)
    S = losses.RealFFT.apply(losses.half_frames(word * losses.level(word, word), losses.hann(256, device), 128))
    at = losses.beginnings(S.square().sum((2, 3)) / 128, 0.008)[0].nonzero()[:, 0].tolist()
    expect("a word's beginning is where it begins", float(at != list(range(at[0], at[-1] + 1)) or abs(at[0] - 62) > 1 or not 9 <= len(at) <= 11), 0)
    heard = [measure(a + k * b, a, a + b)[1].tolist()[5] for k in (0.0, 0.1, 0.3, 1.0)]
    expect("more noise, more to hear", float(heard != sorted(heard)), 0)
    counts = losses.shares(torch.stack((a[0], a[0], silence[0], b[0])), torch.stack((a[0], a[0] + b[0], silence[0], silence[0])), 3.0)
    expect("clean speech counts four times, nothing else does", float((counts - torch.tensor([4.0, 1, 1, 1], device=device) / 1.75).abs().max()), 1e-6)


def check_taught(device, out):
    """Teachers of other hops and windows, read from their files, speak in place in time; who is taught comes to do as they do,
    and what is clean is taught by nobody."""
    torch.manual_seed(8)
    recipe = dict(RECIPES["smoke"], taught=1.0, warmup=1)
    x = 0.1 * torch.randn(4, 160 * 60, device=device)
    teachers, log = [], lambda text: None
    for config in (dict(hop=80, d_conv=7, taps=5), dict(window=160, hop=80)):
        model = layers.Denoiser(dict(config, d_model=32, n_layer=1))
        with torch.no_grad():
            model.head.weight.zero_()                       # its output is its input
        torch.save(dict(tensors=model.state_dict(), config=model.config, recipe=dict(name="t"), count=0, heard=0,
                        speech_hours=0, noise_hours=0), out + ".pt")
        export.export(out + ".pt", out + ".safetensors", int8=True)
        teachers.append(train.read_teacher(out + ".safetensors", 16000, device))
    model = layers.Denoiser(recipe).to(device)
    flat = train.Flat(model, recipe, device, lambda f: f)
    step = train.Step(model, flat, recipe, device, layers.make_scan("torch"), lambda f: f, log, None, teachers)
    step.dtype = torch.float32
    lesson = step.lesson(x, x)
    heard = x[:, :lesson.shape[1]]
    expect("teachers speak in place in time", float((lesson - heard).abs().max()) + abs(x.shape[1] - lesson.shape[1] - 240), 1e-5)
    with torch.no_grad():
        teachers[0].head.bias.mul_(0.25)
    del teachers[1:]
    goal, clean, lr = step.lesson(x, x), torch.zeros_like(x), torch.full((), 4e-3, device=device)
    off = lambda: float((model(x, step.scan)[:, :goal.shape[1]] - goal).norm() / goal.norm())
    with torch.no_grad():
        before = off()
    for _ in range(40):
        step(x, clean)
        flat.update(lr)
    with torch.no_grad():
        after = off()
    expect("who is taught does as the teacher, %.2g -> %.2g" % (before, after), after, 0.2 * before)
    n = goal.shape[1]
    costs = [float(step.loss(x[:, :n], x[:, :n], x[:, :n], y)[0]) for y in (x[:, :n], goal)]
    expect("clean speech is taught by nobody", abs(costs[0] - costs[1]), 1e-6)
    costs = [float(step.loss(goal, x[:, :n], 2 * x[:, :n], y)[0]) for y in (None, x[:, :n])]
    expect("a lesson that is the target is none", abs(costs[0] - costs[1]), 1e-6)


def check_taught_within(device):
    """A teacher of a third of the rate, who does as it hears: below its half rate the lesson is the mixture, above it the target."""
    torch.manual_seed(9)
    teacher = layers.Denoiser(dict(d_model=32, n_layer=1)).to(device).requires_grad_(False)
    recipe = dict(RECIPES["smoke"], rate=48000, window=960, hop=480, taught=1.0)
    model = layers.Denoiser(recipe).to(device)
    with torch.no_grad():
        teacher.head.weight.zero_()
    step = train.Step(model, train.Flat(model, recipe, device, lambda f: f), recipe, device, layers.make_scan("torch"), lambda f: f,
                      lambda text: None, None, [teacher])
    step.dtype = torch.float32
    n = 480 * 60
    hz = torch.arange(n // 2 + 1, device=device) * (48000 / n)
    draw = lambda: torch.fft.rfft(0.1 * torch.randn(4, n, device=device) * torch.hann_window(n, device=device))
    noisy, clean = draw(), draw()
    gap = ((hz > 7000) & (hz < 8200) | (hz > 390) & (hz < 610)).to(hz.dtype)      # where the two are joined: nothing of either
    back = lambda spectrum: torch.fft.irfft(spectrum * (1 - gap), n)
    lesson = step.lesson(back(noisy), back(clean))
    want = back(torch.where(hz < 7600, noisy, clean))[:, :lesson.shape[1]]
    expect("a teacher of a lower rate is heard below it", float((lesson - want).abs().max() / want.abs().max()), 0.02)
    step.teachers.append(layers.Denoiser(recipe).to(device).requires_grad_(False))
    with torch.no_grad():
        step.teachers[1].head.weight.zero_()
        step.teachers[1].head.bias.zero_()                  # says nothing, at any frequency
    half, want = step.lesson(back(noisy), back(clean)), back(torch.where(hz < 7600, 0.5 * noisy, clean))[:, :lesson.shape[1]]
    expect("next to one of the same rate it is half of the lesson", float((half - want).abs().max() / want.abs().max()), 0.02)
    expect("its lesson is one hop shorter", abs(n - lesson.shape[1] - 480), 0)
    del step.teachers[1]
    step.loss.weights["taught_from"] = 400.0
    lesson = step.lesson(back(noisy), back(clean))
    want = back(torch.where((hz > 500) & (hz < 7600), noisy, clean))[:, :lesson.shape[1]]
    expect("and below taught_from it isn't heard", float((lesson - want).abs().max() / want.abs().max()), 0.02)
    parts = step(back(noisy), back(clean))
    expect("a step taught so: finite", float((~torch.isfinite(parts)).sum() + (~torch.isfinite(step.flat.grad)).sum()), 0)


def check_judge(path, device):
    """The judge of a file: finite down to silence, the worse the more noise, and of use to who wants to please it."""
    torch.manual_seed(6)
    jury = judge.Judge(path, device)
    t = torch.arange(judge.LENGTH, device=device) / 16000
    voice = 0.1 * torch.sin(2 * np.pi * 150 * t).sign() * torch.sin(2 * np.pi * 1.5 * t).clamp_min(0)
    noise = 0.1 * torch.randn_like(voice)
    with torch.no_grad():
        verdicts = jury(torch.stack([voice + k * noise for k in (0.01, 0.1, 1.0)]))[:, 1].tolist()
    expect("more noise, a worse verdict of it", float(verdicts != sorted(verdicts, reverse=True)), 0)
    wide = torch.from_numpy(data.resample(noise.cpu().numpy().astype(np.float64), 16000, 48000)).float().to(device)
    expect("48 kHz cut to what the judge hears", float((losses.narrow_band(wide[None], 3)[0] - noise).abs().max()), 1e-4)
    measure = losses.Loss(dict(judged=1.0), device, judged_by=jury)
    noisy = torch.stack((voice + noise, torch.zeros_like(voice)))
    e = noisy.clone().requires_grad_()
    value, parts = measure(e, torch.stack((voice, torch.zeros_like(voice))), noisy)
    g, = torch.autograd.grad(value, e)
    expect("judged loss finite", float((~torch.isfinite(parts)).sum() + (~torch.isfinite(g)).sum()), 0)
    e = noisy - 0.01 * noise.norm() * g / g.norm()
    expect("a step against its gradient pays", float(measure(e, torch.stack((voice, 0 * voice)), noisy)[0] >= value), 0)


def check_mix(device, pool, recipe):
    m = mix.Mix(dict(recipe, batch=40), pool.rate, device)
    noisy, clean = m(pool)
    assert noisy.shape == clean.shape == (40, m.n)
    expect("mixing finite", float((~torch.isfinite(noisy)).sum() + (~torch.isfinite(clean)).sum()), 0)
    expect("mixing peak at most -1 dBFS", float(noisy.abs().max()), 0.9)
    none = dict.fromkeys(("joined", "paused", "moving", "reverb", "second", "babble", "synthetic", "noise_room", "noise_moving",
                          "noise_starts", "noise_only", "clipped", "low_pass", "telephone", "offset", "silent"), 0.0)
    for floor in (0.0, 1.0):
        m = mix.Mix(dict(recipe, **none, batch=8, clean_only=1.0, floor=floor), pool.rate, device)
        noisy, clean = m(pool)
        expect("clean items are their target but for the grain", float((noisy - clean).abs().max()), 1e-4)
    floor = m._floor(torch.randn_like(noisy), torch.ones(8, len(m.hz), device=device))
    low, high = m.config["floor_snr"]
    down = -20.0 * mix.rms(floor).log10()
    expect("a floor is as quiet as it should be", float(((down < low - 0.1) | (down > high + 0.1)).sum()), 0)


def time_scans(device, shape):
    for kind in ("cuda", "triton16", "triton32"):
        try:
            scan = layers.make_scan(kind)
            say("     scan %s at %s bf16: forward %.2f ms, with backward %.2f ms" % (
                kind, shape, train.time_scan(scan, device, shape, False), train.time_scan(scan, device, shape)))
        except Exception as e:
            say("     scan %s: not to be had: %s" % (kind, str(e).strip().split("\n")[0][:300]))
    train.choose_scan("auto", device, shape, lambda text: say("     " + text))


def throughput(recipe, device, pool, compiled, graphed, log):
    torch.manual_seed(1)
    wrap = train.compiler(compiled, log)
    model = layers.Denoiser(recipe).to(device)
    flat = train.Flat(model, recipe, device, wrap)
    _, scan = train.choose_scan(recipe["scan"], device, train.scan_shape(recipe), lambda text: None)
    step = train.Step(model, flat, recipe, device, scan, wrap, log)
    m = mix.Mix(recipe, pool.rate, device, wrap)
    lr = torch.full((), 1e-4, device=device)
    noisy, clean = m(pool)
    t = time.time()
    step.eager(noisy, clean)
    if graphed:
        step.capture(noisy, clean)

    def one():
        a, b = m(pool)
        step(a, b)
        flat.update(lr)

    one()
    ready = time.time() - t
    mix_ms, step_ms, all_ms = clock(lambda: m(pool)), clock(lambda: step(noisy, clean)), clock(lambda: [one() for _ in range(5)]) / 5
    memory = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0
    say("SPEED batch %3d compile %d graph %d: mixing %.1f ms, forward+backward %.1f ms, all %.1f ms = %.0f audio-s/s (%.1f "
        "GiB, ready in %.0f s)" % (m.batch, compiled, step.graph is not None, mix_ms, step_ms, all_ms,
                                   1e3 * m.batch * m.n / m.rate / all_ms, memory, ready))
    return m, step, one


def profile(one, device):
    from torch.profiler import ProfilerActivity, profile as profiler
    kinds = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == "cuda" else [])
    with profiler(activities=kinds) as p:
        for _ in range(3):
            one()
        if device.type == "cuda":
            torch.cuda.synchronize()
    name = lambda e: getattr(e, "self_device_time_total", None) or getattr(e, "self_cuda_time_total", 0) \
        if device.type == "cuda" else e.self_cpu_time_total
    rows = [e for e in p.key_averages() if device.type != "cuda" or "CUDA" in str(getattr(e, "device_type", "CUDA"))]
    rows = sorted(rows, key=name, reverse=True)
    total = sum(name(e) for e in rows) or 1
    say("     profile of a step, ms a step (share):")
    for e in rows[:12]:
        print("       %8.3f  %4.1f %%  x%-4d %s" % (name(e) / 3e3, 100 * name(e) / total, e.count // 3, e.key[:90]))


def main():
    p = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    p.add_argument("--seconds", type=float, default=150.0, help="start no further measurement after this")
    p.add_argument("--batches", type=int, nargs="+", default=[128, 64, 192])
    p.add_argument("--recipe", default="denoise-16k", choices=sorted(RECIPES))
    p.add_argument("--scan", choices=train.SCANS)
    p.add_argument("--judge", metavar="ONNX", help="also check DNSMOS's sig_bak_ovr.onnx as a loss")
    p.add_argument("--out", default="/tmp/ssm-selftest.safetensors")
    a = p.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    recipe = dict(RECIPES[a.recipe])
    recipe["scan"] = a.scan or recipe["scan"]
    say("torch %s, %s" % (torch.__version__, torch.cuda.get_device_name() if device.type == "cuda" else "cpu"))
    try:
        data._library()
        say("ok   libsndfile found")
    except RuntimeError as e:
        say("FAIL %s" % e)
        BAD.append("libsndfile")
    check_model(device, a.out)
    check_golden()
    check_warm(device)
    check_finer(device)
    check_grown(device)
    check_loss(device)
    check_taught(device, a.out)
    check_taught_within(device)
    if a.judge:
        check_judge(a.judge, device)
    rate = recipe.get("rate", 16000)
    pool = data.Pool([], rate, device, 0.2, 0.2)
    pool.add_synthetic()
    check_mix(device, pool, recipe)
    if device.type == "cuda":
        time_scans(device, train.scan_shape(dict(recipe, batch=a.batches[0])))
    log = lambda text: say("     " + text)
    last = None
    modes = [(False, False), (True, False), (True, True)] if device.type == "cuda" else [(False, False)]
    for batch in a.batches:
        for compiled, graphed in modes:
            if time.time() - T0 > a.seconds or (batch != a.batches[0] and (compiled, graphed) != modes[-1]):
                continue
            try:
                m, step, one = throughput(dict(recipe, batch=batch), device, pool, compiled, graphed, log)
                last = last or ((compiled, graphed) == modes[-1] and one) or None
                if last is one:
                    profile(one, device)
            except Exception as e:
                say("FAIL batch %d compile %d graph %d: %s" % (batch, compiled, graphed, str(e).strip().split("\n")[0][:300]))
                BAD.append("throughput")
    say("selftest: %s" % ("FAILED: " + ", ".join(BAD) if BAD else "all well"))
    return len(BAD) > 0


if __name__ == "__main__":
    sys.exit(main())
