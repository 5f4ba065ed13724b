# SPDX-License-Identifier: MIT
"""Check the CUDA selective scan against float64 autograd of the loop it stands for, then time it.

    python3 model/train/check_scan.py build/release/libssm_cuda.so

Every output is filled with NaN before each call. Errors are norm-wise: |x - reference| / |reference|. All failures are
printed; exit status 1 if there is one. Takes less than a minute on an H100; --device cpu checks small sizes only, for a
build that emulates the GPU.
"""

import argparse
import os
import statistics
import sys
import time

import torch

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import scan as ssm  # noqa: E402

# fp32: 1.9e-7 and 1.6e-6 is what mamba's kernels reach; ours re-associates sums, and 2^x is the hardware's 2 ulp.
# bf16: one rounding of each output, 2^-9, from inputs that are exactly representable.
TOLERANCE = {(torch.float32, "forward"): 2e-6, (torch.float32, "backward"): 5e-6,
             (torch.bfloat16, "forward"): 3e-3, (torch.bfloat16, "backward"): 3e-3}
INPUTS = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "elapsed", "h0")
worst = {}
failures = []


def make_inputs(batch, length, channels, states, kind, device, without=(), sliced=True):
    """Random inputs of one layer: dt around the initialisation of the Mamba paper, A = -(1 .. N), perturbed."""
    randn = lambda *shape: torch.randn(*shape, device=device)
    wide = lambda width, pad: (randn(batch, length, width + pad).to(kind)[..., pad:] if sliced
                               else randn(batch, length, width).to(kind))
    decay = torch.arange(1, states + 1, device=device, dtype=torch.float32)
    x = dict(u=wide(channels, channels), dt=wide(channels, 3), z=wide(channels, channels), B=wide(states, states + 5),
             C=wide(states, 7), A=-decay * torch.exp(0.3 * randn(channels, states)), D=1 + 0.1 * randn(channels),
             dt_bias=torch.empty(channels, device=device).uniform_(-6.5, 0.5),
             elapsed=torch.randint(1, 4, (batch, length), device=device).float(), h0=randn(batch, channels, states))
    if length > 4:
        x["dt"][:, length // 2] = 25.0  # softplus's straight branch
    return {name: None if name in without else x[name] for name in INPUTS}


def run(function, x, dout, dh_end, kind=None, **options):
    """Outputs and gradients by name."""
    x = {name: None if v is None else v.detach().to(kind or v.dtype).requires_grad_(name != "elapsed")
         for name, v in x.items()}
    out, h_end = function(*[x[name] for name in INPUTS], return_state=True, **options)
    torch.autograd.backward([out, h_end], [dout.to(out.dtype), dh_end.to(h_end.dtype)])
    result = dict(out=out.detach(), h_end=h_end.detach())
    result.update({"d" + name: v.grad for name, v in x.items() if v is not None and name != "elapsed"})
    return result


class poisoned:
    """torch.empty gives NaN inside, so that what the kernels don't write shows."""

    def __enter__(self):
        self.empty = torch.empty

        def empty(*shape, **options):
            x = self.empty(*shape, **options)
            return x.fill_(float("nan")) if x.is_floating_point() else x.fill_(0xFF)
        torch.empty = empty

    def __exit__(self, *_):
        torch.empty = self.empty


def relative(x, reference):
    norm = float(reference.double().norm())
    return float((x.double() - reference.double()).norm()) / (norm if norm > 0 else 1.0)


def compare(label, kind, results, references):
    for name, reference in references.items():
        side = "backward" if name.startswith("d") else "forward"
        error = relative(results[name], reference)
        # states are fp32 whatever the inputs
        limit = TOLERANCE[torch.float32 if name in ("h_end", "dh0") and kind is torch.float32 else kind, side]
        if reference.numel() < 64:
            limit *= 10  # so few elements that one sum that happens to cancel decides the norm
        key = ("bf16 " if kind is torch.bfloat16 else "fp32 ") + name
        if not error <= worst.get(key, (-1.0, ""))[0]:
            worst[key] = (error, label)
        if not error <= limit:
            failures.append("%s %s: %.2e > %.0e" % (label, key, error, limit))


def check(batch, length, channels, states, kind, device, without=(), sliced=True, options=({},)):
    torch.manual_seed(1000 * batch + 100 * states + length + channels)
    x = make_inputs(batch, length, channels, states, kind, device, without, sliced)
    dout = torch.randn(batch, length, channels, device=device).to(kind)
    dh_end = torch.randn(batch, channels, states, device=device)
    reference = run(ssm.selective_scan_reference, x, dout, dh_end, torch.float64)
    for option in options:
        label = "B%d L%d E%d N%d%s%s %s" % (batch, length, channels, states, "" if sliced else " whole",
                                            "".join(" -" + w for w in without), option or "")
        try:
            with poisoned():
                result = run(ssm.selective_scan, x, dout, dh_end, **option)
                again = run(ssm.selective_scan, x, dout, dh_end, **option)
        except Exception as error:  # a failure like any other: print it with the rest
            failures.append("%s: %r" % (label, error))
            continue
        compare(label, kind, result, reference)
        for name in result:
            if not torch.equal(result[name], again[name]):
                failures.append("%s %s: two runs differ" % (label, name))


def check_graph(device):
    """Captured once, replayed on new inputs, the same as called."""
    x = make_inputs(2, 100, 64, 16, torch.float32, device)
    call = lambda: ssm.selective_scan(*[x[name] for name in INPUTS], return_state=True)
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, h_end = call()
    x["u"].normal_()
    graph.replay()
    expected = call()
    torch.cuda.synchronize()
    if not (torch.equal(out, expected[0]) and torch.equal(h_end, expected[1])):
        failures.append("graph: replay differs from a call")


def check_all(device):
    f32, bf16 = torch.float32, torch.bfloat16
    chunks = ({}, dict(chunk_steps=16), dict(chunk_steps=48, channels_per_lane=2), dict(chunk_steps=64))
    lanes = ({}, dict(channels_per_lane=1), dict(channels_per_lane=2), dict(channels_per_lane=4))
    if device == "cpu":
        for N in (1, 2, 3, 4, 8, 16, 32, 64):
            for length, E in ((1, 1), (17, 33), (37, 20)):
                check(2, length, E, N, f32, device, options=({}, dict(chunk_steps=16)))
        check(2, 70, 140, 16, f32, device, options=chunks + lanes)
        for without in (("z",), ("D",), ("h0",), ("elapsed",), ("dt_bias",), ("z", "D", "h0", "elapsed", "dt_bias")):
            check(1, 33, 21, 16, f32, device, without, options=({}, dict(chunk_steps=16)))
        check(2, 65, 70, 16, bf16, device, options=chunks)
        check(1, 33, 21, 8, bf16, device)
        check(2, 1, 5, 16, f32, device, sliced=False)
        return
    for i, length in enumerate((1, 7, 15, 16, 17, 63, 64, 65, 400)):
        for E in (1, 33, 512):
            check(1 + 2 * (i % 2), length, E, 16, f32, device, options=({}, dict(chunk_steps=16)))
    check(3, 1000, 512, 16, f32, device, options=chunks + lanes[1:])
    check(3, 400, 512, 16, bf16, device, options=chunks + lanes[1:])
    for N in (1, 2, 4, 5, 8, 32, 64):
        check(3, 65, 200, N, f32, device, options=({}, dict(chunk_steps=32)))
        check(1, 63, 33, N, bf16, device)
    for without in (("z",), ("D",), ("h0",), ("elapsed",), ("dt_bias",), ("z", "D", "h0", "elapsed", "dt_bias")):
        check(3, 100, 130, 16, f32, device, without, options=({}, dict(chunk_steps=16)))
    check(3, 200, 130, 16, bf16, device, ("z",))
    check(2, 1, 40, 16, f32, device, sliced=False)
    check(48, 130, 512, 16, f32, device, sliced=False)
    check_graph(device)


# ---- timing --------------------------------------------------------------------------------------------------------


def median_ms(call, small, budget_s):
    """Median of up to 50 replays of a captured graph; small calls ten to a graph, to hide the launch."""
    calls = 10 if small else 1
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    graph.replay()
    torch.cuda.synchronize()
    times, started = [], time.time()
    while len(times) < 50 and (len(times) < 5 or time.time() - started < budget_s):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / calls)
    return statistics.median(times)


def raw_calls(batch, length, channels, kind, **options):
    """Forward (bulk, no checkpoints) and forward (training), backward, straight to the library, on buffers made once."""
    x = make_inputs(batch, length, channels, 16, kind, "cuda", ("h0", "elapsed"), sliced=False)
    lane = options.get("channels_per_lane", 0)
    inputs = {name: x[name] for name in ssm._POINTERS_IN}

    def prepare(backward, extra):
        s = ssm._describe(inputs, options.get("chunk_steps", 0), 0 if backward and lane == 1 else lane)
        kept = ssm._point(s, dict(inputs, **extra))
        return lambda: (kept, ssm._call(s, x["u"].device, backward))
    out = torch.empty_like(x["u"])
    bulk = prepare(False, dict(out=out))

    def training():
        s = ssm._describe(inputs, 0, 0)
        states = torch.empty(ssm._library.selective_scan_cuda_states_bytes(ssm.ctypes.byref(s)) // 4, device="cuda")
        grads = {"d" + name: torch.empty_like(x[name]) for name in ("u", "dt", "z", "B", "C", "A", "D", "dt_bias")}
        dout = torch.randn(batch, length, channels, device="cuda").to(kind)
        return (prepare(False, dict(out=out, states=states)),
                prepare(True, dict(states=states, dout=dout, **grads)))
    return bulk, training


def copy_ceiling():
    a = torch.randn(1 << 28, device="cuda")
    b = torch.empty_like(a)
    return 2 * a.numel() * 4 / (median_ms(lambda: b.copy_(a), False, 0.3) * 1e-3) / 1e12


def time_all(budget_s):
    deadline = time.time() + budget_s
    lines = ["copy %.2f TB/s, %s, torch %s" % (copy_ceiling(), torch.cuda.get_device_name(), torch.__version__),
             "%-18s | %21s | %21s | ps an element: floor forward 5.4 fp32, 4.8 bf16"
             % ("B, E, L", "fp32 ms: fwd, f+b", "bf16 ms: fwd, f+b")]
    rows = [(48, 512, 400, 1), (64, 512, 512, 1), (128, 512, 800, 1), (8, 1536, 1 << 13, 1), (8, 1536, 1 << 11, 1),
            (8, 1536, 1 << 15, 1), (1, 512, 1 << 10, 0), (1, 512, 1 << 14, 0), (1, 512, 1 << 17, 0),
            (1, 1536, 1 << 17, 0), (8, 1536, 1 << 14, 0), (64, 512, 1 << 14, 0), (8, 1536, 1 << 17, 0),
            (1, 512, 1 << 20, 0)]
    for batch, channels, length, trains in rows:
        if time.time() > deadline:
            lines.append("(out of time: rows left out)")
            break
        elements, cells, pico = batch * channels * length, [], []
        for kind in (torch.float32, torch.bfloat16):
            bulk, training = raw_calls(batch, length, channels, kind)
            forward = median_ms(bulk, elements < 1 << 24, 0.3)
            both = float("nan")
            if trains:
                f, b = training()
                both = median_ms(lambda: (f(), b()), elements < 1 << 24, 0.3)
            cells.append("%10.4f %10.4f" % (forward, both))
            pico.append("%6.2f %6.2f" % (forward / elements * 1e9, both / elements * 1e9))
            bulk = training = f = b = None
            torch.cuda.empty_cache()
        lines.append("%-18s | %s | %s | %s | %s" % ((str((batch, channels, length)),) + tuple(cells) + tuple(pico)))
    lines += tuning(deadline)
    return lines + peer(deadline)


def tuning(deadline):
    """What the plan could have chosen: forward and backward apart."""
    lines = ["tuning, fp32 ms: channels a lane / chunk steps: training forward, backward"]
    for batch, channels, length in ((48, 512, 400), (128, 512, 800), (8, 1536, 1 << 13)):
        cells = []
        for lane in (1, 2, 4):
            for steps in (0, length) if length < 1024 else (0, 1024, length):
                if time.time() > deadline:
                    return lines
                _, training = raw_calls(batch, length, channels, torch.float32, channels_per_lane=lane,
                                        chunk_steps=steps)
                f, b = training()
                cells.append("%d/%d: %.3f %s" % (lane, steps, median_ms(f, False, 0.1),
                                                 "-" if lane == 1 else "%.3f" % median_ms(b, False, 0.1)))
        lines.append("  %s  %s" % ((batch, channels, length), "   ".join(cells)))
    return lines


def peer(deadline):
    """The loop in plain PyTorch, once, at the smallest training shape."""
    if time.time() > deadline:
        return []
    x = make_inputs(48, 400, 512, 16, torch.float32, "cuda", sliced=False)
    x["u"].requires_grad_()
    times = []
    for _ in range(2):
        torch.cuda.synchronize()
        started = time.time()
        out = ssm.selective_scan_reference(*[x[name] for name in INPUTS])
        out.sum().backward()
        torch.cuda.synchronize()
        times.append((time.time() - started) * 1e3)
    return ["peer: PyTorch loop over time, (48, 512, 400) fp32, forward + backward: %.1f ms" % times[-1]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("library")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--no-timing", action="store_true")
    arguments = parser.parse_args()
    ssm.load(os.path.abspath(arguments.library), ("cuda", arguments.device))
    torch.backends.cuda.matmul.allow_tf32 = False
    started = time.time()
    check_all(arguments.device)
    checked = time.time() - started
    timing = []
    if arguments.device == "cuda" and not arguments.no_timing:
        try:
            timing = time_all(max(5.0, 45.0 - checked))
        except Exception as error:
            failures.append("timing: %r" % (error,))
    for failure in failures:
        print("FAIL", failure)
    print("worst relative errors (%.1f s of checks):" % checked)
    for kind in ("fp32", "bf16"):
        print(" ", kind, "  ".join("%s %.1e" % (key.split()[1], value[0]) for key, value in worst.items()
                                   if key.startswith(kind)))
    print("\n".join(timing))
    print("FAILED: %d" % len(failures) if failures else "ok")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
