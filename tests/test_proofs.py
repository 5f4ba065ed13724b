#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""The cheap ones of model/train/proofs, for every day: needs NumPy, and PyTorch for half of them."""
import json
import os
import sys
import tempfile

import script

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "model", "train", "proofs"))

try:
    import numpy as np
    import hippo
except ImportError:
    np = None
try:
    import torch
    import torch.nn.functional as F
    import log_lines
    import tasks
    import tokens
    import export
    import layers
    import libssm
except ImportError:
    torch = None


def hippo_coefficients_give_the_whole_past_back():
    errors = [hippo.reconstruction_error(N, 256) for N in (8, 16, 24)]
    assert errors[0] > errors[1] > errors[2] and errors[2] < 2e-3, errors


def s4d_legs_tends_to_legs():
    errors = [hippo.diagonal_limit_error(N) for N in (16, 64, 256)]
    assert errors[0] < 0.1 and errors[1] < errors[0] / 2.5 and errors[2] < errors[1] / 2.5, errors


def s4d_legs_remembers_what_real_poles_forget():
    lost = {name: hippo.what_is_left(poles, 2.0, (2,))[0] for name, poles in hippo.families(64).items()}
    assert lost["S4D-LegS"] < 0.01 and lost["real, -(1 .. N)"] > 10 * lost["S4D-LegS"], lost


def s4d_by_convolution_is_s4d_by_recurrence():
    torch.manual_seed(1)
    m, L = tokens.S4D(tokens.complete(dict(d_model=8, d_state=16))).double(), 300
    u = torch.randn(2, L, 16, dtype=torch.float64)
    whole = tokens.convolve(u, tokens.s4d_kernel(m.log_dt, m.log_A_real, m.A_imag, m.C, L), m.D)
    A, dt = torch.complex(-torch.exp(m.log_A_real), m.A_imag), torch.exp(m.log_dt)[:, None]
    decay, C = torch.exp(dt * A), torch.view_as_complex(m.C.detach())
    h, steps = torch.zeros(2, 16, 8, dtype=torch.complex128), []
    for t in range(L):
        h = decay * h + (decay - 1) / A * u[:, t, :, None]
        steps.append(2 * (C * h).sum(-1).real + m.D * u[:, t])
    difference = float((whole - torch.stack(steps, 1)).norm() / whole.norm())
    assert difference < 1e-11, difference


def selective_copying_can_be_answered_from_its_tokens():
    x, target = tasks.selective_copying(5, 100, "cpu", torch.Generator().manual_seed(1))
    for sequence, answer in zip(x.tolist(), target.tolist()):
        assert [t for t in sequence[:100] if t != tasks.NOISE] == answer
        assert sequence[100:] == [tasks.MARK] * tasks.KEPT


def induction_heads_can_be_answered_from_their_tokens():
    x, target = tasks.induction_heads(50, 16, "cpu", torch.Generator().manual_seed(1))
    for sequence, answer in zip(x.tolist(), target.tolist()):
        assert sequence[-1] == tasks.TRIGGER and sequence.count(tasks.TRIGGER) == 2
        assert [sequence[sequence.index(tasks.TRIGGER) + 1]] == answer


def a_token_model_says_the_same_in_pytorch_step_by_step_and_scanned():
    torch.manual_seed(1)
    model = tokens.TokenModel(dict(d_model=32))
    x, _ = tasks.induction_heads(3, 200, "cpu", torch.Generator().manual_seed(2))
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "tokens.safetensors")
        tokens.export(model.state_dict(), model.config, path, "tokens")
        wanted = model.logits(x, layers.make_scan("torch")).numpy()
        engine = libssm.Engine(path, tasks.VOCABULARY, streams=3)
        live = np.stack([engine.step(x[:, t].numpy()).copy() for t in range(200)], 1)
        engine.reset()
        scanned = np.stack([engine.scan(x[i].numpy(), i) for i in range(3)])
        engine.close()
    for ours in (live, scanned):
        assert np.abs(ours - wanted).max() < 1e-4 * np.abs(wanted).max(), np.abs(ours - wanted).max()


def s4d_layers_say_the_same_in_pytorch_step_by_step_and_scanned():
    torch.manual_seed(3)
    V, D, L = 7, 16, 300
    embedding, stack, head = torch.nn.Embedding(V, D), [layers.S4D(D, 32, "legs"), layers.S4D(D, 10, "lin")], torch.nn.Linear(D, V)
    rows = [dict(type="embedding", name="embedding", vocabulary=V, width=D)]
    rows += [layer.row("layers.%d" % i) for i, layer in enumerate(stack)] + [{"type": "linear", "name": "head", "in": D, "out": V}]
    state = torch.nn.ModuleDict(dict(embedding=embedding, layers=torch.nn.ModuleList(stack), head=head)).state_dict()
    x = torch.randint(V, (L,))
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "s4d.safetensors")
        config = dict(format=1, name="s4d", task="tokens", rate=1, hop=1, vocabulary=V, layers=rows)
        export.write_safetensors(path, {k: t.numpy() for k, t in state.items()}, {"ssm.config": json.dumps(config)})
        h = embedding(x)[None]
        for layer in stack:
            h = layer(h)
        wanted = head(h)[0].numpy()
        engine = libssm.Engine(path, V)
        live = np.stack([engine.step(t)[0].copy() for t in x.numpy()])
        engine.reset()
        scanned = engine.scan(x.numpy())
        engine.close()
    for ours in (live, scanned):
        assert np.abs(ours - wanted).max() < 1e-4 * np.abs(wanted).max(), np.abs(ours - wanted).max()


def s4d_legs_starts_from_the_poles_of_hippo():
    ours, theirs = layers.legs_poles(16).numpy(), hippo.legs_diagonal(32)[0].imag
    assert np.abs(ours - theirs).max() < 1e-9 * theirs.max(), np.abs(ours - theirs).max()


def log_lines_of_another_seed_come_from_another_site():
    hosts = [{line.split()[3] for line in log_lines.lines(seed, 200)} for seed in (1, 2, 3)]
    assert all(1 <= len(names) <= 5 for names in hosts) and not set.intersection(*hosts) and hosts[0] != hosts[1], hosts
    assert [*log_lines.lines(1, 50)] == [*log_lines.lines(1, 50)]


def text_to_train_on_is_of_many_sites_and_the_same_for_a_seed():
    text = [*log_lines.stretches(7, 4000)]
    assert len(text) == 4000 and text == [*log_lines.stretches(7, 4000)]
    beginnings = {line[:3] for line in text[::400]}
    assert len(beginnings) >= 5 and not any("\n" in line for line in text), beginnings


def odd_lines_of_foreign_logs_are_none_of_the_ordinary_ones():
    for system in log_lines.foreign_logs.SYSTEMS:
        labelled = [*log_lines.foreign_logs.mixed(system, 3, 1000, 0.05, after=200)]
        ordinary = {line for kind, line in labelled if not kind}
        odd = [line for kind, line in labelled if kind]
        assert all(not kind for kind, _ in labelled[:200]) and 20 < len(odd) < 80 and not ordinary.intersection(odd), system


def ssm_lines_scores_a_line_by_its_most_surprising_eight_bytes():
    torch.manual_seed(4)
    model = tokens.TokenModel(dict(d_model=16, n_layer=1, vocabulary=256))
    text = "".join(line + "\n" for line in log_lines.lines(1, 12)).encode() + b"\x1b[2J\xff no newline"
    x = torch.tensor(list(text))[None]
    with torch.no_grad(), tempfile.TemporaryDirectory() as folder:
        model.head.weight.mul_(10)
        path = os.path.join(folder, "bytes.safetensors")
        tokens.export(model.state_dict(), model.config, path, "bytes")
        logits = model.logits(x, layers.make_scan("torch"))[0, :-1]
        bits = [0.0] + (F.cross_entropy(logits, x[0, 1:], reduction="none") / np.log(2)).tolist()
        text_file = os.path.join(folder, "some.log")
        with open(text_file, "wb") as file:
            file.write(text)
        said = log_lines.scores_of(text_file, path)
    wanted, at = [], 0
    for line in text.splitlines(True):
        wanted.append(np.convolve(bits[at:at + len(line)], np.full(8, 0.125))[:len(line)].max())
        at += len(line)
    assert np.abs(np.array(said) - wanted).max() < 1e-4, (said, wanted)


CASES = [hippo_coefficients_give_the_whole_past_back, s4d_legs_tends_to_legs, s4d_legs_remembers_what_real_poles_forget]
CASES_TORCH = [s4d_by_convolution_is_s4d_by_recurrence, s4d_legs_starts_from_the_poles_of_hippo,
               selective_copying_can_be_answered_from_its_tokens,
               induction_heads_can_be_answered_from_their_tokens,
               log_lines_of_another_seed_come_from_another_site,
               text_to_train_on_is_of_many_sites_and_the_same_for_a_seed, odd_lines_of_foreign_logs_are_none_of_the_ordinary_ones]
CASES_LIBRARY = [a_token_model_says_the_same_in_pytorch_step_by_step_and_scanned,
                 s4d_layers_say_the_same_in_pytorch_step_by_step_and_scanned,
                 ssm_lines_scores_a_line_by_its_most_surprising_eight_bytes]


def main():
    wanted = []
    library = torch is not None and os.path.exists(libssm.PATH)
    for have, cases, name in ((np, CASES, "NumPy"), (torch, CASES_TORCH, "PyTorch"),
                              (library, CASES_LIBRARY, "PyTorch and a release build")):
        if have:
            wanted += cases
        else:
            print("skipped: %d cases that need %s" % (len(cases), name))
    return script.run(*wanted)


if __name__ == "__main__":
    sys.exit(main())
