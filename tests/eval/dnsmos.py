# SPDX-License-Identifier: MIT
"""DNSMOS P.835 without a reference: speech, background and overall quality, 1 to 5.

The graph lies in PyPI's speechmos (requirements-peers.txt); what surrounds it is
Reddy et al., arXiv 2110.01763, as the DNS challenge applies it.
"""
import os

import numpy as np

RATE, LENGTH = 16000, 144160            # 9.01 s, what the graph looks at
# quadratics that map the graph's three outputs to the scale of the listening tests, highest power first
CURVES = ((-0.08397278, 1.22083953, 0.0052439), (-0.13166888, 1.60915514, -0.39604546),
          (-0.06766283, 1.11546468, 0.04602535))


class Dnsmos:
    """Call with (N,) at 16 kHz -> (speech, background, overall)."""

    def __init__(self, folder):
        """folder: where the package speechmos lies."""
        from peers import graph
        self.graph, inputs = graph(os.path.join(folder, "dnsmos_models", "sig_bak_ovr.onnx"))
        self.input, = inputs

    def __call__(self, x):
        x = np.clip(np.tile(x, -(-LENGTH // len(x))), -1, 1).astype(np.float32)
        starts = range(0, len(x) - LENGTH + 1, RATE)
        raw = np.mean([self.graph.run(None, {self.input: x[None, a:a + LENGTH]})[0][0] for a in starts], 0)
        return tuple(float(np.polyval(curve, r)) for curve, r in zip(CURVES, raw))
