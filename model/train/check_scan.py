# SPDX-License-Identifier: MIT
"""Check the CUDA selective scan against float64 autograd of the loop it stands for, then time it.

    python3 model/train/check_scan.py build/release/libssm_cuda.so [--json FILE]

Every output is filled with NaN before each call. Errors are norm-wise: |x - reference| / |reference|. All failures are
printed; exit status 1 if there is one. Timed against a floor, a copy of the same run, and peers: mamba_ssm's kernels as
measured on such a card before, and the Triton twin. Takes less than a minute on an H100; --device cpu checks small
sizes only, for a build that emulates the GPU.
"""

import argparse
import json
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
# Length, A, and how far off the last state may be. An fp32 state takes a rounding each step, at random: 2e-8 times the root
# of the steps is left, and the chunks the plan picks leave PICKED.
MEMORY = ((1 << 12, 1e-4, 4e-6), (1 << 15, 1e-5, 1e-5), (1 << 20, 1e-6, 1e-4))
PICKED = 4e-6
INPUTS = ("u", "dt", "A", "B", "C", "D", "z", "dt_bias", "elapsed", "h0")
worst = {}
failures = []
memory = []


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


def check(batch, length, channels, states, kind, device, without=(), sliced=True, options=({},), forgets=False):
    """forgets: all states are forgotten within a hundred steps."""
    torch.manual_seed(1000 * batch + 100 * states + length + channels)
    x = make_inputs(batch, length, channels, states, kind, device, without, sliced)
    if forgets:
        x["dt_bias"].uniform_(-1.0, 0.5)
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


def check_ahead(kind, device):
    """Forward in chunks so long and so many that blocks copy tiles ahead; such rows as let them."""
    torch.manual_seed(8)
    x = make_inputs(1, 8200, 40, 16, kind, device, sliced=False)
    call = lambda function, to, **options: dict(zip(("out", "h_end"), function(
        *[x[name].to(to or x[name].dtype) for name in INPUTS], return_state=True, **options)))
    with torch.no_grad(), poisoned():
        compare("copies ahead", kind, call(ssm.selective_scan, None, chunk_steps=1024),
                call(ssm.selective_scan_reference, torch.float64))


def check_copied(kind, device, length, channels=136):
    """Forward where inputs are copied ahead: whole rows, and few channels for the last warps; with elapsed times and not."""
    for steps in (length, 128, 144):
        options = [dict(chunk_steps=steps, channels_per_lane=K, lanes_per_channel=P) for K, P in ((1, 0), (2, 2), (2, 4))]
        for without in ((), ("elapsed",)):
            check(1, length, channels, 16, kind, device, without, sliced=False, options=options)


def check_refuses():
    """Numbers that the kernels' 32 bits don't hold."""
    for name, value in (("u_row", 1 << 31), ("B_row", -1), ("length", (1 << 30) + 1), ("chunk_steps", (1 << 30) + 1)):
        scan = ssm._Scan(batch=1, length=4, channels=4, d_state=16)
        setattr(scan, name, value)
        if ssm._library.selective_scan_cuda_forward(ssm.ctypes.byref(scan), None) != -1:
            failures.append("%s of %d: not refused" % (name, value))


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


def last_state(x):
    """The state after the last step in fp64, of one item: each step's share, decayed by all that follow."""
    up = lambda name: x[name].double()[0] if name in ("u", "dt", "B", "h0") else x[name].double()
    delta = torch.nn.functional.softplus(up("dt") + up("dt_bias"))
    later = delta.sum(0) - delta.cumsum(0)
    h = torch.exp(delta.sum(0)[:, None] * up("A")) * up("h0")
    for part in range(0, len(delta), 1 << 15):
        t = slice(part, part + (1 << 15))
        shares = (delta[t] * up("u")[t])[:, :, None] * up("B")[t][:, None, :]
        h = h + (torch.exp(later[t][:, :, None] * up("A")) * shares).sum(0)
    return h


def check_memory(length, decay, limit, device, channels=64):
    """States that remember as long as the sequence and grow: whole, and in chunks of any length."""
    torch.manual_seed(length)
    x = make_inputs(1, length, channels, 16, torch.float32, device, ("elapsed",))
    x["A"] = -decay * torch.rand(channels, 16, device=device)
    x["dt_bias"] = torch.full((channels,), 0.5, device=device)
    expected = last_state(x)
    errors = {steps: relative(ssm.selective_scan(*[x[name] for name in INPUTS], return_state=True,
                                                 chunk_steps=steps)[1], expected) for steps in (0, 256, 4096, length)}
    memory.append("length %d, A %.0e: " % (length, decay) +
                  ", ".join("%s %.1e" % (steps or "picked", error) for steps, error in errors.items()))
    for steps, error in errors.items():
        allowed = limit if steps else min(limit, PICKED)
        if not error <= allowed:
            failures.append("memory of %d steps, chunk_steps %d: %.2e > %.0e" % (length, steps, error, allowed))


def check_all(device):
    f32, bf16 = torch.float32, torch.bfloat16
    chunks = ({}, dict(chunk_steps=16), dict(chunk_steps=48, channels_per_lane=2), dict(chunk_steps=64))
    lanes = ({}, dict(channels_per_lane=1), dict(channels_per_lane=2), dict(channels_per_lane=2, lanes_per_channel=4))
    fed = dict(channels_per_lane=1, lanes_per_channel=4)
    feds = dict(options=(fed, dict(fed, chunk_steps=16), dict(fed, chunk_steps=48)))
    forgetting = dict(forgets=True, options=(dict(chunk_steps=128), dict(chunk_steps=352, channels_per_lane=2)))
    check_refuses()
    for kind in (f32, bf16):
        check_ahead(kind, device)
        for length in (150, 1029) if device == "cpu" else (300, 1029, 1040):
            check_copied(kind, device, length, 24 if device == "cpu" else 136)
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
        check(1, 300, 20, 16, f32, device)
        check(2, 150, 9, 13, bf16, device)
        for kind in (f32, bf16):
            check(2, 70, 130, 16, kind, device, **feds)
            check(1, 37, 100, 13, kind, device, ("z", "D", "h0"), **feds)
        for N in (16, 32):
            check(1, 700, 20, N, f32, device, **forgetting)
        check(1, 700, 20, 16, bf16, device, sliced=False, **forgetting)
        check_memory(400, 1e-3, 2e-6, device, 8)
        return
    for i, length in enumerate((1, 7, 15, 16, 17, 63, 64, 65, 400)):
        for E in (1, 33, 512):
            check(1 + 2 * (i % 2), length, E, 16, f32, device, options=({}, dict(chunk_steps=16)))
    check(3, 1000, 512, 16, f32, device, options=chunks + lanes[1:])
    check(3, 400, 512, 16, bf16, device, options=chunks + lanes[1:])
    for length, E in ((1000, 512), (1024, 500), (3000, 60)):  # a cluster's blocks share the steps
        check(1, length, E, 16, f32, device)
        check(1, length, E, 13, bf16, device)
    for N in (1, 2, 4, 5, 8, 32, 64):
        check(3, 65, 200, N, f32, device, options=({}, dict(chunk_steps=32)))
        check(1, 63, 33, N, bf16, device)
    for without in (("z",), ("D",), ("h0",), ("elapsed",), ("dt_bias",), ("z", "D", "h0", "elapsed", "dt_bias")):
        check(3, 100, 130, 16, f32, device, without, options=({}, dict(chunk_steps=16)))
    check(3, 200, 130, 16, bf16, device, ("z",))
    check(2, 1, 40, 16, f32, device, sliced=False)
    check(48, 130, 512, 16, f32, device, sliced=False)
    for kind in (f32, bf16):
        check(3, 400, 500, 16, kind, device, **feds)
        check(1, 200, 100, 13, kind, device, ("z", "D", "h0"), **feds)
        check(2, 1000, 192, 16, kind, device, sliced=False, options=(fed,))
    for N in (5, 16, 32):
        check(1, 900, 100, N, f32, device, **forgetting)
    for kind in (f32, bf16):
        check(1, 900, 100, 16, kind, device, sliced=False, **forgetting)
        check(1, 900, 100, 16, kind, device, ("elapsed", "z"), sliced=False, **forgetting)
    check(120, 40, 8, 16, f32, device)  # many sequences of few channels
    check_graph(device)
    for length, decay, limit in MEMORY:
        check_memory(length, decay, limit, device)
    check_memory(*MEMORY[0], device, 66)  # rows that aren't copied


# ---- timing --------------------------------------------------------------------------------------------------------


def times_ms(call, small, budget_s):
    """Median and p99 of up to 200 replays of a captured graph; small calls ten to a graph, to hide the launch."""
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
    while len(times) < 200 and (len(times) < 5 or time.time() - started < budget_s):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / calls)
    return statistics.median(times), sorted(times)[min(len(times) - 1, len(times) * 99 // 100)]


def raw_calls(batch, length, channels, kind, forgets=True):
    """Forward (bulk, no checkpoints); forward (training), backward; straight to the library, on buffers made once."""
    x = make_inputs(batch, length, channels, 16, kind, "cuda", ("h0", "elapsed"), sliced=False)
    if not forgets:
        x["A"] *= 1e-4
    inputs = {name: x[name] for name in ssm._POINTERS_IN}

    def prepare(backward, extra):
        s = ssm._describe(inputs)
        kept = ssm._point(s, dict(inputs, **extra))
        return lambda: (kept, ssm._call(s, x["u"].device, backward))
    out = torch.empty_like(x["u"])
    bulk = prepare(False, dict(out=out))

    def training():
        s = ssm._describe(inputs)
        states = torch.empty(ssm._library.selective_scan_cuda_states_bytes(ssm.ctypes.byref(s)) // 4, device="cuda")
        grads = {"d" + name: torch.empty_like(x[name]) for name in ("u", "dt", "z", "B", "C", "A", "D", "dt_bias")}
        dout = torch.randn(batch, length, channels, device="cuda").to(kind)
        return (prepare(False, dict(out=out, states=states)),
                prepare(True, dict(states=states, dout=dout, **grads)))
    return bulk, training


def copy_ceiling():
    """TB/s of a kernel that reads a number and writes a number; the driver's copy is slower."""
    a = torch.randn(1 << 28, device="cuda")
    b = torch.empty_like(a)
    return 2 * a.numel() * 4 / (times_ms(lambda: torch.add(a, 0, out=b), False, 0.3)[0] * 1e-3) / 1e12


# Batch, channels, length: mamba_ssm's kernels on an H100 80GB, ms fp32 and bf16 (built with its own flags, CUDA 13.0).
FORWARD = {(1, 512, 1 << 10): (0.0260, 0.0212), (1, 512, 1 << 14): (0.461, 0.186), (1, 512, 1 << 17): (3.73, 1.48),
           (1, 512, 1 << 20): (28.3, 11.7), (1, 1536, 1 << 17): (7.90, 4.45), (8, 1536, 1 << 14): (7.59, 4.20),
           (64, 512, 1 << 14): (20.0, 11.6), (8, 1536, 1 << 17): (59.5, 34.0)}
FORGETS_NOTHING = ((1, 512, 1 << 17), (8, 1536, 1 << 14))  # forward of states whose memory no chunk outlasts
BOTH = {(8, 1536, 1 << 13): (12.0, 9.33), (8, 1536, 1 << 11): (2.92, 2.28), (8, 1536, 1 << 15): (47.8, 38.4)}
TWIN = ((48, 512, 400), (64, 512, 512))  # forward and backward, against the Triton twin: what it is made for


def floor_us(sizes, kind, copy, backward):
    """Bytes (u, dt, z, out; backward reads u, dt, z, dout and writes three gradients) or exponentials, 19 and 28."""
    elements, size = sizes[0] * sizes[1] * sizes[2], 4 if kind is torch.float32 else 2
    clock = torch.cuda.get_device_properties(0).multi_processor_count * 16 * 1.98e9
    step = lambda tensors, exponentials: max(tensors * size / (copy * 1e12), exponentials / clock)
    return elements * 1e6 * (step(4, 19) + (step(7, 28) if backward else 0.0))


def twin_ms(sizes, kind):
    """The Triton twin's forward and backward, ms; None without Triton."""
    try:
        import scan_triton
    except ImportError:
        return None
    x = make_inputs(sizes[0], sizes[2], sizes[1], 16, kind, "cuda", ("h0", "elapsed"), sliced=False)
    x = {name: None if v is None else v.requires_grad_() for name, v in x.items()}
    dout = torch.randn(sizes[0], sizes[2], sizes[1], device="cuda").to(kind)
    inputs = [x[name] for name in INPUTS[:8]]
    return times_ms(lambda: torch.autograd.grad(scan_triton.selective_scan(*inputs), inputs, dout), False, 0.2)[0]


def results_of(sizes, copy, backward, peers, peer, forgets=True):
    """One result a type."""
    batch, channels, length = sizes
    what = "forward + backward" if backward else "forward" if forgets else "forward, nothing forgotten"
    for i, kind in enumerate((torch.float32, torch.bfloat16)):
        bulk, training = raw_calls(batch, length, channels, kind, forgets)
        call = bulk
        if backward:
            forward, back = training()
            call = lambda: (forward(), back())
        median, p99 = times_ms(call, batch * channels * length < 1 << 24, 0.3)
        bulk = training = call = forward = back = None
        torch.cuda.empty_cache()
        other = peers[i] if peers else twin_ms(sizes, kind)
        name = "selective scan %s, %s" % (what, ("fp32", "bf16")[i])
        steps = "%d" % length if length & (length - 1) else "2^%d" % (length.bit_length() - 1)
        yield dict(name=name, sizes="(%d, %d) %s" % (batch, channels, steps), median_us=1e3 * median, p99_us=1e3 * p99,
                   floor_us=floor_us(sizes, kind, copy, backward), peer_us=other and 1e3 * other,
                   peer=other and peer)


def time_all(budget_s):
    """Results, and the lines to print."""
    deadline, copy, results = time.time() + budget_s, copy_ceiling(), []
    lines = ["copy %.2f TB/s, %s, torch %s" % (copy, torch.cuda.get_device_name(), torch.__version__),
             "%-33s %-15s %9s %9s %9s %5s %9s  %s" % ("us", "sizes", "median", "p99", "floor", "x", "peer", "x ours")]
    mamba = "mamba_ssm's kernels, an earlier run"
    rows = [(sizes, copy, False, peers, mamba) for sizes, peers in FORWARD.items()]
    rows += [(sizes, copy, False, FORWARD[sizes], mamba, False) for sizes in FORGETS_NOTHING]
    rows += [(sizes, copy, True, peers, mamba) for sizes, peers in BOTH.items()]
    rows += [(sizes, copy, True, None, "Triton twin") for sizes in TWIN]
    for row in rows:
        if time.time() > deadline:
            lines.append("(out of time: rows left out)")
            break
        try:
            results.extend(results_of(*row))
        except RuntimeError as error:  # the other rows stand
            failures.append("timing %s: %r" % (row[0], error))
    for r in results:
        median, floor, peer = r["median_us"], r["floor_us"], r["peer_us"] or float("nan")
        lines.append("%-33s %-15s %9.1f %9.1f %9.1f %5.2f %9.1f  %.2f" %
                     (r["name"][15:], r["sizes"], median, r["p99_us"], floor, median / floor, peer, peer / median))
    return results, lines


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("library")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--no-timing", action="store_true")
    parser.add_argument("--json", metavar="FILE", help="write the timings there, a line each")
    arguments = parser.parse_args()
    ssm.load(os.path.abspath(arguments.library), ("cuda", arguments.device))
    torch.backends.cuda.matmul.allow_tf32 = False
    started = time.time()
    check_all(arguments.device)
    checked = time.time() - started
    results, timing = [], []
    if arguments.device == "cuda" and not arguments.no_timing:
        try:
            results, timing = time_all(max(5.0, 42.0 - checked))
        except Exception as error:
            failures.append("timing: %r" % (error,))
    for failure in failures:
        print("FAIL", failure)
    print("worst relative errors (%.1f s of checks):" % checked)
    for kind in ("fp32", "bf16"):
        print(" ", kind, "  ".join("%s %.1e" % (key.split()[1], value[0]) for key, value in worst.items()
                                   if key.startswith(kind)))
    print("\n".join(["error of the last state by chunk_steps:"] + memory + timing))
    if arguments.json:
        with open(arguments.json, "w") as file:
            file.writelines(json.dumps(result) + "\n" for result in results)
    print("FAILED: %d" % len(failures) if failures else "ok")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
