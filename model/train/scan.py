# SPDX-License-Identifier: MIT
"""The selective scan for training: kernels/cuda/selective_scan.cu behind autograd, or plain PyTorch without a GPU.

    out, h_end = selective_scan(u, dt, A, B, C, D, z, dt_bias, elapsed, h0, return_state=True)

        delta = elapsed softplus(dt + dt_bias);  h <- exp(delta A) h + delta B u;  out = (<C, h> + D u) silu(z)

u, dt, z (batch, L, E), B, C (batch, L, N), fp32 or bf16; A (E, N) = -exp(A_log), D, dt_bias (E), elapsed (batch, L),
h0, h_end (batch, E, N), fp32. u, dt, z, B and C may be slices along their last axis: nothing is copied then.

The library is found in build/*/ of this tree or named by SSM_CUDA_LIBRARY; there is no extension to build. Calls
allocate through PyTorch only and never synchronise, so they can be captured in a CUDA graph.
"""

import contextlib
import ctypes
import glob
import os

import torch
import torch.nn.functional as F

_POINTERS_IN = ("u", "dt", "z", "B", "C", "A", "D", "dt_bias", "elapsed", "h0")
_POINTERS = _POINTERS_IN + ("out", "h_end", "states", "dout", "dh_end", "du", "ddt", "dz", "dB", "dC", "dA", "dD",
                            "ddt_bias", "dh0", "workspace")
_ROWS = ("u", "dt", "z", "B", "C", "out", "dout", "du", "ddt", "dz")


class _Scan(ctypes.Structure):
    """struct selective_scan_cuda, field by field."""

    _fields_ = ([(name, ctypes.c_int32) for name in ("batch", "length", "channels", "d_state", "bf16", "chunk_steps",
                                                     "channels_per_lane", "lanes_per_channel")]
                + [(name + "_row", ctypes.c_int64) for name in _ROWS]
                + [(name, ctypes.c_void_p) for name in _POINTERS])


_library = None
_devices = ("cuda",)
_looked = False


def load(path, devices=("cuda",)):
    """Use this libssm_cuda.so, for tensors on these kinds of device. Raises OSError if it can't be loaded."""
    global _library, _devices, _looked
    library = ctypes.CDLL(path)
    scan = ctypes.POINTER(_Scan)
    for name, result, arguments in (("workspace_bytes", ctypes.c_size_t, [scan, ctypes.c_int]),
                                    ("states_bytes", ctypes.c_size_t, [scan]),
                                    ("forward", ctypes.c_int, [scan, ctypes.c_void_p]),
                                    ("backward", ctypes.c_int, [scan, ctypes.c_void_p]),
                                    ("error", ctypes.c_char_p, [ctypes.c_int])):
        function = getattr(library, "selective_scan_cuda_" + name)
        function.restype, function.argtypes = result, arguments
    _library, _devices, _looked = library, tuple(devices), True


def available(device):
    """True if tensors on `device` go through the library; looks for it on first use."""
    global _looked
    if not _looked:
        _looked = True
        root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
        built = sorted(glob.glob(os.path.join(root, "build/*/libssm_cuda.so")))
        for path in [os.environ.get("SSM_CUDA_LIBRARY", "")] + built:
            if torch.cuda.is_available() and os.path.exists(path):
                load(path)
                break
    return _library is not None and torch.device(device).type in _devices


def selective_scan(u, dt, A, B, C, D=None, z=None, dt_bias=None, elapsed=None, h0=None, return_state=False,
                   chunk_steps=0, channels_per_lane=0, lanes_per_channel=0):
    """The scan, by the library where there is one for u's device, else by selective_scan_reference.

    Gives out in u's type, or (out, h_end). elapsed gets no gradient. The last three arguments are for tests."""
    if not available(u.device) or u.dtype not in (torch.float32, torch.bfloat16) or A.shape[1] > 64:
        return selective_scan_reference(u, dt, A, B, C, D, z, dt_bias, elapsed, h0, return_state)
    as_input = lambda x: None if x is None else x.to(u.dtype)
    as_float = lambda x: None if x is None else x.float()
    out, h_end = _SelectiveScan.apply(u, as_input(dt), as_float(A), as_input(B), as_input(C), as_float(D), as_input(z),
                                      as_float(dt_bias), as_float(elapsed), as_float(h0), return_state,
                                      (chunk_steps, channels_per_lane, lanes_per_channel))
    return (out, h_end) if return_state else out


def selective_scan_reference(u, dt, A, B, C, D=None, z=None, dt_bias=None, elapsed=None, h0=None, return_state=False):
    """What the scan means: a loop over time in fp32, or in fp64 if u is. Any device; autograd does the backward."""
    kind = torch.float64 if u.dtype == torch.float64 else torch.float32
    up = lambda x: None if x is None else x.to(kind)
    x, dt, A, B, C, D, z, dt_bias, elapsed, h = map(up, (u, dt, A, B, C, D, z, dt_bias, elapsed, h0))
    delta = F.softplus(dt if dt_bias is None else dt + dt_bias)
    if elapsed is not None:
        delta = delta * elapsed.unsqueeze(-1)
    if h is None:
        h = x.new_zeros(x.shape[0], x.shape[2], A.shape[1])
    ys = []
    # unbind, because the gradient of x[:, t] is a whole tensor of zeros each step
    for delta_t, x_t, B_t, C_t in zip(delta.unbind(1), (delta * x).unbind(1), B.unbind(1), C.unbind(1)):
        h = torch.exp(delta_t.unsqueeze(-1) * A) * h + x_t.unsqueeze(-1) * B_t.unsqueeze(1)
        ys.append((h * C_t.unsqueeze(1)).sum(-1))
    y = torch.stack(ys, 1)
    if D is not None:
        y = y + D * x
    if z is not None:
        y = y * F.silu(z)
    return (y.to(u.dtype), h) if return_state else y.to(u.dtype)


def _rows(x):
    """x as (batch, L, width) with even rows, and the distance between two of them; a copy only if it must be."""
    batch, length, width = x.shape
    row = x.stride(1) if length > 1 else x.stride(0) if batch > 1 else width
    if (width == 1 or x.stride(2) == 1) and (batch == 1 or x.stride(0) == length * row):
        return x, row
    return x.contiguous(), width


def _aligned(x):
    """x contiguous and on 16 bytes, as the kernels' vector loads want tables."""
    if x is None:
        return None
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def _describe(tensors, tuning=(0, 0, 0)):
    u, A = tensors["u"], tensors["A"]
    return _Scan(batch=u.shape[0], length=u.shape[1], channels=u.shape[2], d_state=A.shape[1],
                 bf16=u.dtype == torch.bfloat16, chunk_steps=tuning[0], channels_per_lane=tuning[1],
                 lanes_per_channel=tuning[2])


def _point(scan, tensors):
    """Set pointers and rows. Gives the tensors the pointers point into: keep them until the call is made."""
    kept = []
    for name, x in tensors.items():
        if x is None:
            continue
        if name in _ROWS:
            x, row = _rows(x)
            setattr(scan, name + "_row", row)
        setattr(scan, name, x.data_ptr())
        kept.append(x)
    return kept


def _call(scan, device, backward):
    """Workspace, current stream, launch."""
    on_gpu = device.type == "cuda"
    with torch.cuda.device(device) if on_gpu else contextlib.nullcontext():
        size = _library.selective_scan_cuda_workspace_bytes(ctypes.byref(scan), int(backward))
        workspace = torch.empty(max(size, 16), dtype=torch.uint8, device=device)
        scan.workspace = workspace.data_ptr()
        stream = torch.cuda.current_stream(device).cuda_stream if on_gpu else None
        function = _library.selective_scan_cuda_backward if backward else _library.selective_scan_cuda_forward
        result = function(ctypes.byref(scan), stream)
    if result:
        raise RuntimeError("selective scan: " + _library.selective_scan_cuda_error(result).decode())


class _SelectiveScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx, u, dt, A, B, C, D, z, dt_bias, elapsed, h0, return_state, tuning):
        inputs = dict(u=u, dt=dt, z=z, B=B, C=C, A=_aligned(A), D=_aligned(D), dt_bias=_aligned(dt_bias),
                      elapsed=_aligned(elapsed), h0=_aligned(h0))
        scan = _describe(inputs, tuning)
        floats = dict(dtype=torch.float32, device=u.device)
        out = torch.empty(u.shape, dtype=u.dtype, device=u.device)
        h_end = torch.empty(u.shape[0], u.shape[2], A.shape[1], **floats) if return_state else None
        states = None
        if any(ctx.needs_input_grad):
            states = torch.empty(_library.selective_scan_cuda_states_bytes(ctypes.byref(scan)) // 4, **floats)
        kept = _point(scan, dict(inputs, out=out, h_end=h_end, states=states))
        _call(scan, u.device, backward=False)
        del kept
        ctx.save_for_backward(states, *[inputs[name] for name in _POINTERS_IN])
        ctx.tuning = tuning
        ctx.set_materialize_grads(False)
        return out, h_end

    @staticmethod
    def backward(ctx, dout, dh_end):
        states, *saved = ctx.saved_tensors
        inputs = dict(zip(_POINTERS_IN, saved))
        u = inputs["u"]
        like = lambda name, kind: None if inputs[name] is None else torch.empty(inputs[name].shape, dtype=kind,
                                                                                  device=u.device)
        grads = {"d" + name: like(name, u.dtype) for name in ("u", "dt", "z", "B", "C")}
        grads.update({"d" + name: like(name, torch.float32) for name in ("A", "D", "dt_bias", "h0")})
        dout = torch.zeros(u.shape, dtype=u.dtype, device=u.device) if dout is None else dout
        scan = _describe(inputs, ctx.tuning)
        kept = _point(scan, dict(inputs, states=states, dout=dout, dh_end=_aligned(dh_end), **grads))
        _call(scan, u.device, backward=True)
        del kept
        return (grads["du"], grads["ddt"], grads["dA"], grads["dB"], grads["dC"], grads["dD"], grads["dz"],
                grads["ddt_bias"], None, grads["dh0"], None, None)
