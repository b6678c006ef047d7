"""Experiment F1: Kullback–Leibler divergences of flows from the four energies of Rezende & Mohamed (2015).

    python -m benchmarks.papers.flows [cell | cell/energy …]

Each cell is a family and a depth, five starts each; the divergence is log Z − ELBO with 50,000 fresh draws. Results go
to ``results/flows.json`` and a figure beside it; what is there is run again only when it is named. The first cell is
the method as it is shipped (64 draws a step, 4,000 steps at most), the second the same from a start three times as
wide; the others have 256 draws and 8,000 steps, as the values to compare with had. Few planar and radial layers are
trained at higher rates than the method's 0.002, by which 8,000 steps do not take them to their end, and two cells of
one energy otherwise than the rest (`TRAINING`): eight planar maps on U2, which at the higher rate end in the poorer of
two optima, and four couplings on U1.
"""

import json
import sys
import time

import jax
import numpy as np

import pushforward as pf
from benchmarks.papers.where import RESULTS
from pushforward.infer.diagnostics.psis import psis

from .energies import LOG_Z, target

NUM_STARTS, NUM_DRAWS = 5, 50_000
# As the values to compare with were got, but for path gradients and triangular in place of diagonal affine maps.
LONG = {"num_draws": 256, "num_steps": 8000, "anneal": 1 / 3, "plateau": None, "whiten": None}
PLAIN = {"hidden": (32, 32), "activation": "relu"} | LONG
CELLS = {
    "default": {},
    "width 3": {"width": 3.0},
    "planar 2": {"family": "planar", "num_layers": 2, "learning_rate": 1e-2} | LONG,
    "planar 8": {"family": "planar", "num_layers": 8, "learning_rate": 1e-2} | LONG,
    "planar 32": {"family": "planar", "num_layers": 32} | LONG,
    "radial 8": {"family": "radial", "num_layers": 8, "learning_rate": 2e-2} | LONG,
    "affine coupling 4": {"family": "realnvp", "num_layers": 4} | PLAIN,
    "affine coupling 8": {"family": "realnvp", "num_layers": 8} | PLAIN,
    "NICE 8": {"family": "nice", "num_layers": 8} | PLAIN,
}
# Where the cell's training ends in a poor optimum more often than not.
TRAINING = {
    ("planar 8", "U2"): {"learning_rate": 2e-3},
    ("affine coupling 4", "U1"): {"learning_rate": 5e-3, "num_steps": 16_000},
}
# Two runs each: planar, radial and coupling flows of another implementation (the larger one is the bound).
REFERENCE = {
    "planar 2": {"U1": (0.31, 0.29), "U2": (0.83, 0.73), "U3": (0.67, 0.72), "U4": (0.87, 0.85)},
    "planar 8": {"U1": (0.05, 0.08), "U2": (0.17, 0.14), "U3": (0.21, 0.29), "U4": (0.27, 0.30)},
    "planar 32": {"U1": (0.004, 0.006), "U2": (0.012, 0.007), "U3": (0.07, 0.04), "U4": (0.06, 0.17)},
    "radial 8": {"U1": (0.24, 0.28), "U2": (0.59, 0.62), "U3": (0.55, 0.61), "U4": (0.71, 0.72)},
    "affine coupling 4": {"U1": (0.017, 0.014), "U2": (0.013, 0.009), "U3": (0.07, 0.08), "U4": (0.16, 0.07)},
    "affine coupling 8": {"U1": (0.018, 0.010), "U2": (0.008, 0.005), "U3": (0.026, 0.022), "U4": (0.055, 0.064)},
}


def run(cell: str, energy: str) -> dict:
    """Five starts of a cell on an energy."""
    options = CELLS[cell] | TRAINING.get((cell, energy), {})
    out = {"kl": [], "k_hat": [], "ess_share": [], "steps": [], "seconds": []}
    for start in range(NUM_STARTS):
        began = time.perf_counter()
        posterior = pf.fit(target(energy), pf.NormalizingFlow(**options), key=start, num_samples=100, progress=False)
        seconds = time.perf_counter() - began
        log_w = weights(posterior, energy)
        w = np.exp(log_w - log_w.max())
        out["kl"].append(LOG_Z[energy] - float(log_w.mean()))
        out["k_hat"].append(float(psis(log_w).k_hat))
        out["ess_share"].append(float(w.sum() ** 2 / np.sum(w**2) / w.size))
        out["steps"].append(int(posterior.iterations["loss"].shape[1]))
        out["seconds"].append(seconds)
    return out | {"median_kl": float(np.median(out["kl"]))}


def weights(posterior, energy: str) -> np.ndarray:
    """Log weights of fresh draws."""
    with jax.enable_x64(True):
        return np.asarray(_weights(posterior.approximation, target(energy)))


@jax.jit
def _weights(q, target):
    u, log_q = q.sample_and_log_prob(jax.random.key(99), NUM_DRAWS)
    return jax.vmap(target.log_density)(u) - log_q


def main(cells: list[str]) -> None:
    path = RESULTS / "flows.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    missing = [f"{cell}/{energy}" for cell in CELLS for energy in LOG_Z if energy not in found.get(cell, {})]
    for named in cells or missing:
        cell, _, one = named.partition("/")
        rows = found.setdefault(cell, {})
        for energy in [one] if one else LOG_Z:
            rows[energy] = run(cell, energy)
            bound = max(REFERENCE.get(cell, {}).get(energy, (np.nan,)))
            print(f"{cell:18s} {energy} median KL {rows[energy]['median_kl']:.4f} (reference {bound})", flush=True)
            path.write_text(json.dumps(found, indent=1) + "\n")
    figure(found)


def figure(found: dict) -> None:
    """Divergence over cells, one panel per energy."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 4, figsize=(14, 3.6), sharey=True, layout="constrained")
    for axis, energy in zip(axes, LOG_Z, strict=True):
        for i, (cell, rows) in enumerate(found.items()):
            if energy not in rows:
                continue
            axis.plot([i] * NUM_STARTS, np.maximum(rows[energy]["kl"], 1e-4), "o", color="0.6", ms=3)
            axis.plot(i, max(rows[energy]["median_kl"], 1e-4), "_", color="C0", ms=14, mew=2)
            for value in REFERENCE.get(cell, {}).get(energy, ()):
                axis.plot(i, value, "x", color="C3", ms=5)
        axis.set_yscale("log")
        axis.set_xticks(range(len(found)), list(found), rotation=70, fontsize=8)
        axis.set_title(energy)
    axes[0].set_ylabel("KL(q, p) in nats (crosses: reference)")
    fig.savefig(RESULTS / "flows.png", dpi=110)


if __name__ == "__main__":
    main(sys.argv[1:])
