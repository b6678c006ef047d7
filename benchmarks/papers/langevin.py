"""The experiments of Bregman proximal and mirror Langevin papers, run again.

``python -m benchmarks.papers.langevin [EXPERIMENT]... [--full]`` writes ``results/langevin_<experiment>.json`` and a
figure; rows that are in the file are not run again, so that a killed run goes on. ``--full`` has the papers' grids of
``a``–``c`` and numbers of chains and runs of ``e1``, of chains of ``e2`` and ``e3``, where by default a part of them is
run, in files of their own. The experiments:

* ``s1``: the anisotropic Laplace π ∝ exp(−Σ i|xᵢ|), d = 100 (after Lau & Liu 2022)
* ``s2``: sparse logistic regression with a Laplace prior, against long NUTS
* ``e1``–``e3``: Metropolis-adjusted mirror Langevin on Dirichlet and uniform laws (Srinivasan et al. 2024)
* ``a``, ``b``, ``c``: mixtures of Gaussians and of Laplace laws, with and without a Laplace prior (Lau et al. 2023)
* ``edges``: densities at the edges of their supports, with and without a test, entropies against barriers
* ``acceptance``: target acceptances of mirror Langevin at the same edges
* ``d``: deconvolution under total variation, 512 × 512 (Lau et al. 2023)
"""

import sys

import jax.numpy as jnp
import numpy as np

import pushforward as pf
from pushforward.infer.geometry import L1, HyperbolicEntropy

from .langevin_common import Rows, run
from .langevin_deconvolution import d
from .langevin_edges import acceptance, edges
from .langevin_mirror import e1, e2, e3
from .langevin_mixtures import a, b, c
from .langevin_regression import s2


def s1(chains: int = 200, steps: int = 4000) -> None:
    """200 chains from N(0, I), the second half of 4,000 steps: the mean over i of |i E|xᵢ| − 1|."""
    d = 100
    slope = np.arange(1.0, d + 1)
    target = pf.Target.composite(lambda x: 0.0 * jnp.sum(x), L1(slope), np.zeros(d))
    start = np.random.default_rng(0).normal(size=(chains, d))
    mirror, smoothing = HyperbolicEntropy(0.7 / slope), 0.05 / slope
    bregman = {"mirror": mirror, "envelope": mirror, "smoothing": smoothing}
    euclid = {"smoothing": 2.5e-5, "step_size": 1e-5, "scale": 1.0}
    methods = {
        "MYULA": (pf.BregmanProximalLangevin(adjusted=False, bias_check=False, **euclid), 3.24),
        "LBMUMLA": (pf.BregmanProximalLangevin(adjusted=False, bias_check=False, step_size=1e-3, **bregman), 0.047),
        "RBMUMLA": (
            pf.BregmanProximalLangevin(adjusted=False, bias_check=False, step_size=1e-3, side="right", **bregman),
            None,
        ),
        "adjusted LBMUMLA": (pf.BregmanProximalLangevin(step_size=6e-4, **bregman), 0.022),
        "adjusted, Euclidean envelope": (
            pf.BregmanProximalLangevin(step_size=6e-4, mirror=mirror, smoothing=0.05 / slope**2),
            None,
        ),
        "subgradient MAMLA": (pf.MirrorLangevin(step_size=6e-4, mirror=mirror), None),
    }
    about = {"metric": "mean over i of |i E|x_i| - 1|", "chains": chains, "steps": steps, "discarded": steps // 2}
    rows = Rows("s1", about, ("method", "error", "worst", "expected", "acceptance", "seconds"))

    def compute(method, expected):
        draws, stats = run(target, method, start=start, steps=steps, thin=5)
        found = slope * np.abs(draws[:, draws.shape[1] // 2 :]).mean((0, 1))
        return stats | {"error": float(np.abs(found - 1).mean()), "worst": float(np.abs(found - 1).max()),
                        "expected": expected, "moments": found.round(4).tolist()}  # fmt: skip

    for name, (method, expected) in methods.items():
        rows.add({"method": name}, lambda method=method, expected=expected: compute(method, expected))

    def learned():
        """4 chains with the defaults, every step and scale learned in warm-up, the same length."""
        posterior = pf.fit(
            target, pf.BregmanProximalLangevin(mirror="hyperbolic"), start=start[:16], num_chains=16,
            num_warmup=steps // 2, num_samples=steps // 2, progress=False,
        )  # fmt: skip
        found = slope * np.abs(posterior.draws()["x"]).mean((0, 1))
        accepted = float(posterior.data["sample_stats"]["acceptance_rate"].mean())
        return {"error": float(np.abs(found - 1).mean()), "worst": float(np.abs(found - 1).max()), "expected": None,
                "acceptance": accepted, "moments": found.round(4).tolist()}  # fmt: skip

    rows.add({"method": "adjusted, all learned (16 chains)"}, learned)
    _, axes, save = rows.figure((7, 3.6), 1, 1)
    for row in rows.rows:
        axes[0, 0].plot(slope, row["moments"], lw=1, label=f"{row['method']}: {row['error']:.3f}")
    axes[0, 0].axhline(1.0, color="k", lw=0.6)
    axes[0, 0].set(xlabel="coordinate i", ylabel="i E|xᵢ|", yscale="log", ylim=(0.8, 12))
    axes[0, 0].legend(fontsize=7)
    save()


if __name__ == "__main__":
    experiments = {
        "s1": s1,
        "s2": s2,
        "e1": e1,
        "e2": e2,
        "e3": e3,
        "edges": edges,
        "acceptance": acceptance,
        "d": d,
        "c": c,
        "a": a,
        "b": b,
    }
    for name in [name for name in sys.argv[1:] if name != "--full"] or experiments:
        print(f"-- {name}", flush=True)
        experiments[name]()
