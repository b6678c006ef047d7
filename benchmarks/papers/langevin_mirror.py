"""Metropolis-adjusted mirror Langevin (Srinivasan et al. 2024): ``e1``, ``e2``, ``e3`` of `benchmarks.papers.langevin`.

Dirichlet(4, …, 4) on the simplex of d + 1 coordinates under the logarithmic barrier, and uniform laws on boxes,
ellipsoids and simplices under theirs, with fixed steps. The mixing time is the first iteration (of every tenth) where
the debiased Sinkhorn divergence to independent draws (cost ‖x − y‖², regularisation 0.001) is at most 0.01; of uniform
laws where 45 % of the chains are in the outer half of the volume, in 3,000 iterations, and 5,000 for d = 32 and 64.
500 chains (250 of them for the divergence) where the paper has 2,000, and one run where it has ten (``--full`` has
these). Chains of uniform laws begin uniformly in the body shrunk to a tenth.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from numpyro.distributions import constraints

import pushforward as pf
from pushforward.infer.geometry import BoxBarrier, EllipsoidBarrier, SimplexBarrier, ellipsoid

from .langevin_common import FULL, Rows, run

CHAINS, RUNS, LOOK, SHOWN = (2000, 10, 10, 2000) if FULL else (500, 1, 10, 250)


def dirichlet(d: int) -> Any:
    """U = −3 Σ log xᵢ − 3 log s."""
    return pf.Target.from_log_density(
        lambda p: 3 * jnp.sum(jnp.log(p)), np.full(d + 1, 1 / (d + 1)), constraints.simplex
    )


def cloud(target: Any, d: int, chains: int, seed: int) -> np.ndarray:
    """Starts 1/(2d) ± U(−1, 1)/(24 d), in u."""
    x = 1 / (2 * d) + np.random.default_rng(seed).uniform(-1, 1, (chains, d)) / (24 * d)
    return unconstrained(target, np.column_stack([x, 1 - x.sum(1)]))


def unconstrained(target: Any, x: np.ndarray) -> np.ndarray:
    with jax.enable_x64(True):
        return np.asarray(jax.vmap(lambda row: target.unconstrain({"x": row}))(jnp.asarray(x)))


@jax.jit
def transport(x: jax.Array, y: jax.Array) -> jax.Array:
    """The entropic cost of two clouds of equal size, in 200 steps of Sinkhorn's iteration."""
    cost = ((x[:, None] - y[None]) ** 2).sum(-1) / 1e-3

    def body(_, potentials):
        f, g = potentials
        f = -logsumexp(g - cost, axis=1) + np.log(len(x))
        return f, -logsumexp(f[:, None] - cost, axis=0) + np.log(len(y))

    f, g = jax.lax.fori_loop(0, 200, body, (jnp.zeros(len(x)), jnp.zeros(len(y))))
    return 1e-3 * (f.mean() + g.mean())


def sinkhorn(x: np.ndarray, y: np.ndarray, own: float) -> float:
    """The debiased divergence; ``own`` is the cost of y to itself."""
    x, y = jnp.asarray(x[:SHOWN], jnp.float32), jnp.asarray(y, jnp.float32)
    return float(transport(x, y) - 0.5 * transport(x, x) - 0.5 * own)


def arrival(draws: np.ndarray, truth: np.ndarray) -> int | None:
    """The first kept iteration within 0.01, by bisection, as the divergence falls."""
    own = float(transport(jnp.asarray(truth, jnp.float32), jnp.asarray(truth, jnp.float32)))
    near = lambda i: sinkhorn(draws[:, i], truth, own) <= 0.01  # noqa: E731
    low, high = -1, draws.shape[1] - 1
    if not near(high):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if near(middle) else (middle, high)
    return (high + 1) * LOOK


def plain(axis: Any, x: tuple[int, ...], y: tuple[int, ...] | None = None) -> None:
    """Ticks of a logarithmic axis where the data are, as whole numbers."""
    axis.set_xticks(x, [str(value) for value in x])
    axis.set_xticks([], minor=True)
    if y:
        axis.set_yticks(y, [str(value) for value in y])
        axis.set_yticks([], minor=True)


def e1() -> None:
    """Mixing and acceptance for steps 0.25 d^−p."""
    rows = Rows(
        "e1", {"chains": CHAINS, "runs": RUNS},
        ("dim", "power", "mixing", "acceptance", "mean_error", "variance_ratio", "seconds"),
    )  # fmt: skip

    def small(d, power):
        target, mixing, accepted, last = dirichlet(d), [], [], []
        truth = np.random.default_rng(9).dirichlet(np.full(d + 1, 4.0), SHOWN)[:, :d]
        method = pf.MirrorLangevin(step_size=0.25 * d**-power, mirror={"x": SimplexBarrier()})
        for seed in range(RUNS):
            draws, stats = run(target, method, start=cloud(target, d, CHAINS, seed), steps=2000, thin=LOOK, key=seed)
            mixing.append(arrival(draws[..., :d], truth))
            accepted.append(stats["acceptance"])
            last.append(draws[:, 100:, :d].reshape(-1, d))
        x, variance = np.concatenate(last), d / (d + 1) ** 2 / (4 * (d + 1) + 1)
        return {"mixing": mixing, "acceptance": float(np.mean(accepted)),
                "mean_error": float(np.abs(x.mean(0) * (d + 1) - 1).max()),
                "variance_ratio": float((x.var(0) / variance).mean()),
                "expected_acceptance": {2: 0.72, 5: 0.71}.get(d) if power == 1.5 else None}  # fmt: skip

    def large(d, power):
        target = dirichlet(d)
        method = pf.MirrorLangevin(step_size=0.25 * d**-power, mirror={"x": SimplexBarrier()})
        _, stats = run(target, method, start=cloud(target, d, 16, 0), steps=5000, thin=LOOK, skip=0.1)
        return {"acceptance": stats["acceptance"]}

    for d in (2, 5, 10):
        for power in (1.5, 2.0):
            rows.add({"kind": "mixing", "dim": d, "power": power}, lambda d=d, power=power: small(d, power))
    for power in (0.75, 1.0, 1.5, 2.0):
        for d in (16, 32, 64):
            rows.add({"kind": "acceptance", "dim": d, "power": power}, lambda d=d, power=power: large(d, power))
    _, axes, save = rows.figure((8, 3.2), 1, 2)
    for power in (1.5, 2.0):
        chosen = [r for r in rows.rows if r["kind"] == "mixing" and r["power"] == power]
        times = [np.mean([m for m in r["mixing"] if m is not None] or [np.nan]) for r in chosen]
        axes[0, 0].plot([r["dim"] for r in chosen], times, "o-", label=f"h = 0.25 d^−{power}")
    axes[0, 0].set(xlabel="d", ylabel="mixing time, looked at every 10", xscale="log", yscale="log")
    plain(axes[0, 0], (2, 5, 10), (10, 20, 50, 100))
    for power in (0.75, 1.0, 1.5, 2.0):
        chosen = [r for r in rows.rows if r["kind"] == "acceptance" and r["power"] == power]
        axes[0, 1].plot([r["dim"] for r in chosen], [r["acceptance"] for r in chosen], "o-", label=f"0.25 d^−{power}")
    axes[0, 1].set(xlabel="d", ylabel="acceptance", xscale="log", ylim=(0, 1))
    plain(axes[0, 1], (16, 32, 64))
    for axis in axes[0]:
        axis.legend(fontsize=7)
    save()


def e2() -> None:
    """MAMLA with h = 0.25 d^−3/2 against unadjusted MLA with h = 0.002/d, 1,000 iterations from the same starts."""
    rows = Rows("e2", {"chains": CHAINS}, ("dim", "method", "divergence", "variance_ratio", "seconds"))

    def compute(d, method):
        target = dirichlet(d)
        truth = np.random.default_rng(9).dirichlet(np.full(d + 1, 4.0), SHOWN)[:, :d]
        own = float(transport(jnp.asarray(truth, jnp.float32), jnp.asarray(truth, jnp.float32)))
        draws, stats = run(target, method, start=cloud(target, d, CHAINS, 0), steps=1000, thin=LOOK)
        at = [0, 1, 3, 9, 29, 99]
        curve = [sinkhorn(draws[:, i, :d], truth, own) for i in at]
        variance = d / (d + 1) ** 2 / (4 * (d + 1) + 1)
        return stats | {"divergence": curve[-1], "at": [LOOK * (i + 1) for i in at], "curve": curve,
                        "variance_ratio": float((draws[:, -20:, :d].var((0, 1)) / variance).mean())}  # fmt: skip

    for d in (2, 5, 10):
        barrier = {"mirror": {"x": SimplexBarrier()}, "bias_check": False}
        methods = {
            "MAMLA": pf.MirrorLangevin(step_size=0.25 * d**-1.5, **barrier),
            "MLA": pf.MirrorLangevin(step_size=0.002 / d, adjusted=False, **barrier),
        }
        for name, method in methods.items():
            rows.add({"dim": d, "method": name}, lambda d=d, method=method: compute(d, method))
    _, axes, save = rows.figure((5, 3.2), 1, 1)
    for i, row in enumerate(rows.rows):
        style = "-" if row["method"] == "MAMLA" else "--"
        label = f"{row['method']}, d = {row['dim']}"
        axes[0, 0].plot(row["at"], np.maximum(row["curve"], 1e-5), f"C{i // 2}{style}", label=label)
    axes[0, 0].set(xlabel="iteration", ylabel="Sinkhorn divergence", xscale="log", yscale="log")
    axes[0, 0].legend(fontsize=7)
    save()


def body(kind: str, d: int, condition: float) -> tuple[Any, Any, np.ndarray, Callable[[np.ndarray], np.ndarray], float]:
    """Support, mirror, starts, who is in the outer half of the volume, and the paper's constant c of the step."""
    rng = np.random.default_rng(0)
    if kind == "box":
        half = np.ones(d)
        half[0] = 1 / condition
        start = 0.1 * half * rng.uniform(-1, 1, (CHAINS, d))
        outer = lambda x: (np.abs(x) > half * 2 ** (-1 / d)).any(-1)  # noqa: E731
        return constraints.independent(constraints.interval(-half, half), 1), BoxBarrier(half), start, outer, 0.25
    ball = rng.normal(size=(CHAINS, d))
    ball *= (rng.uniform(size=CHAINS) ** (1 / d) / np.linalg.norm(ball, axis=1))[:, None]
    if kind == "ellipsoid":
        rotation, _ = np.linalg.qr(rng.normal(size=(d, d)))
        eigenvalues = np.linspace(1, condition, d)
        matrix = (rotation * eigenvalues) @ rotation.T
        matrix = 0.5 * (matrix + matrix.T)
        start = 0.1 * (ball / np.sqrt(eigenvalues)) @ rotation.T
        outer = lambda x: np.einsum("...i,ij,...j", x, matrix, x) > 2 ** (-2 / d)  # noqa: E731
        return ellipsoid(matrix), EllipsoidBarrier(matrix), start, outer, 0.05
    start = (1 + 0.1 * (rng.dirichlet(np.ones(d + 1), CHAINS) * (d + 1) - 1)) / (d + 1)
    outer = lambda x: x[..., :-1].sum(-1) > 2 ** (-1 / d)  # noqa: E731
    return constraints.simplex, SimplexBarrier(), start, outer, 0.1


def e3() -> None:
    """Uniform laws: the Metropolised mirror random walk, as the gradient of a constant is 0."""
    rows = Rows(
        "e3", {"chains": CHAINS}, ("body", "dim", "condition", "power", "mixing", "acceptance", "outer", "seconds")
    )

    def compute(kind, d, condition, power, steps=3000):
        support, mirror, start, outer, c = body(kind, d, condition)
        target = pf.Target.from_log_density(lambda x: 0.0 * jnp.sum(x), start[0], support)
        method = pf.MirrorLangevin(step_size=c * d**-power, mirror={"x": mirror})
        draws, stats = run(target, method, start=unconstrained(target, start), steps=steps, thin=LOOK)
        share = outer(draws).mean(0)
        there = np.flatnonzero(share >= 0.45)
        return {"mixing": int(there[0] + 1) * LOOK if there.size else None, "acceptance": stats["acceptance"],
                "outer": float(share[-100:].mean())}  # fmt: skip

    for kind in ("box", "ellipsoid", "simplex"):
        for d in (4, 8, 16):
            conditions = (1.0,) if kind == "simplex" else (1.0, d**2 / 4, float(np.exp(d / 4)))
            for condition in conditions:
                for power in (1.0, 1.5):
                    key = {"body": kind, "dim": d, "condition": condition, "power": power}
                    rows.add(key, lambda key=key: compute(*key.values()))
        for d in (32, 64):
            for power in (0.5, 0.75, 1.0, 1.5):
                key = {"body": kind, "dim": d, "condition": 1.0 if kind == "simplex" else 5.0, "power": power}
                rows.add(key, lambda key=key: compute(*key.values(), steps=5000))
    _, axes, save = rows.figure((9, 3.2), 1, 3, sharey=True)
    for axis, kind in zip(axes[0], ("box", "ellipsoid", "simplex"), strict=True):
        for round_ in (True, False):
            for power in (1.0, 1.5):
                chosen = [r for r in rows.rows if r["body"] == kind and r["power"] == power and r["dim"] <= 16]
                chosen = [r for r in chosen if r["condition"] == (1 if round_ else r["dim"] ** 2 / 4) and r["mixing"]]
                if chosen:
                    label = f"p = {power}, condition {'1' if round_ else 'd²/4'}"
                    style = "o-" if round_ else "x--"  # the curves of the two lie on each other
                    colour = "C0" if power == 1 else "C1"
                    axis.plot([r["dim"] for r in chosen], [r["mixing"] for r in chosen], colour + style, label=label)
        axis.set(title=kind, xlabel="d", xscale="log", yscale="log")
        plain(axis, (4, 8, 16), (50, 100, 200, 500, 1000, 2000))
        axis.legend(fontsize=7)
    axes[0, 0].set_ylabel("mixing time")
    save()
