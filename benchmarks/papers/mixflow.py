"""The experiments of MixFlows run again: bounds by length, real data, stability of orbits, cost against NUTS and flows.

    python -m benchmarks.papers.mixflow [PART]... [--only NAME...]
        [--uci FOLDER] [--posteriordb FOLDER] [--authors FOLDER]

Parts, each with its own entry of ``results/mixflow.json``; without names, those that have none yet:

* ``paper``: the first paper's map and settings, next to the bounds stored by its authors
* ``best``: the largest bound of a few settings at no more gradients per draw than the stored best (length × leapfrogs)
* ``default``: what ``pf.fit(target, pf.MixFlow())`` makes of each synthetic target
* ``references``: the default reference, a full-covariance normal, against mean-field ones; means over four keys
* ``boston``: Boston housing (``--uci``), the bound against the stored one and against bridge sampling of NUTS draws
* ``regressions``: the paper's others (``--authors``, a clone of its code), likewise
* ``posteriordb``: six posteriors (``--posteriordb``), the bound against bridge sampling of NUTS draws
* ``stability``: median distance of an orbit's start from where it comes to lie after N maps and their inverses
* ``cost``: effective draws per gradient and discrepancies (KSD) of MixFlows, NUTS, planar and RealNVP flows; bounds

``--only`` restricts a part to some of its targets; what is in the file already is not run again.

All in 64 bits but for half of ``stability``. ``figure`` draws what there is.
"""

import argparse
import json
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import pushforward as pf
from benchmarks.papers import mixflow_targets as targets
from benchmarks.papers.where import RESULTS
from pushforward.infer.variational.mixflow import families, orbit
from pushforward.infer.variational.mixflow.families import Flow
from pushforward.infer.variational.mixflow.hamiltonian import HamiltonianMap
from pushforward.infer.variational.mixflow.involutive import InvolutiveMap

TRAJECTORIES = 128
LENGTHS = (2, 10, 50, 100, 200, 500, 1000)
POSTERIORS = (
    "eight_schools-eight_schools_noncentered",
    "kidiq-kidscore_momiq",
    "earnings-logearn_height",
    "mesquite-logmesquite",
    "gp_pois_regr-gp_regr",
    "kilpisjarvi_mod-kilpisjarvi",
)
# (kernel, leapfrogs, step in units of the reference's standard deviations, length)
CANDIDATES = {
    "cross": [("hmc", 60, 0.05, 1000), ("hmc", 20, 0.2, 1500)],
    "banana": [("hmc", 50, 0.05, 2000), ("hmc", 100, 0.05, 1000)],
    "funnel 2": [("hmc", 40, 0.05, 1000), ("hmc", 20, 0.1, 2000)],
    "funnel 5": [("hmc", 40, 0.05, 1000), ("hmc", 20, 0.1, 2000)],
    "funnel 20": [("hmc", 40, 0.05, 1000), ("hmc", 20, 0.1, 1500)],
}


def reference_of(name):
    """The stored reference, or a mean-field fit."""
    problem = targets.SYNTHETIC[name]
    if problem["reference"] is not None:
        return orbit.Reference(*(jnp.asarray(x, float) for x in problem["reference"]))
    fitted = pf.fit(
        target_of(name), pf.ADVI(num_steps=5000, covariance="diagonal"), key=0, num_samples=50, progress=False
    ).approximation
    return orbit.Reference(fitted.mean(), jnp.sqrt(jnp.diagonal(fitted.covariance())))


def target_of(name):
    """As a target of the package."""
    density, data, dim = targets.SYNTHETIC[name]["density"]
    if data is None:
        return pf.Target.from_log_density(lambda x: density(x, None), np.zeros(dim))
    return pf.Target.from_log_density(density, np.zeros(dim), data=data)


@partial(jax.jit, static_argnames=("longest", "batch"))
def orbits(target, flow_map, reference, key, *, longest, batch):
    begun = orbit.begin(key, flow_map, reference, target.log_density, batch, longest)
    return orbit.grow(begun, flow_map, reference, target.log_density, jnp.asarray(longest - 1))


def curve(target, flow_map, reference, lengths, batch=TRAJECTORIES):
    """The bound at these lengths: mean, standard error, trajectories lost at the longest, gradients per trajectory."""
    begun = time.perf_counter()
    grown = orbits(target, flow_map, reference, jax.random.key(0), longest=max(lengths), batch=batch)
    found = np.asarray(orbit.bounds(grown, jnp.asarray(lengths)))
    fine = np.isfinite(found).all(1)
    return {
        "lengths": list(lengths),
        "elbo": found[fine].mean(0).tolist(),
        "se": (found[fine].std(0, ddof=1) / np.sqrt(fine.sum())).tolist(),
        "lost": int((~fine).sum()),
        "gradients_per_trajectory": 2 * (max(lengths) - 1) * flow_map.gradients,
        "seconds": time.perf_counter() - begun,
    }


def paper(options):
    """The first paper's settings: Laplace momentum as theirs, and normal momentum, both with stream shifts."""
    found = options["found"].get("paper", {})
    for name, problem in targets.SYNTHETIC.items():
        leapfrogs, step = problem["paper"]
        lengths = [1, *(problem["stored"] or (10, 100, 1000))]
        lengths += [n for n in (100, 500, 1000) if n not in lengths]
        target, reference = target_of(name), reference_of(name)
        for momentum in ("laplace", "gaussian"):
            if f"{name}, {momentum}" in found:
                continue
            flow_map = HamiltonianMap(step, jnp.ones(target.dim), leapfrogs, momentum)
            row = curve(target, flow_map, reference, sorted(lengths))
            row |= {
                "leapfrogs": leapfrogs,
                "step": step,
                "stored": problem["stored"] if momentum == "laplace" else None,
            }
            found[f"{name}, {momentum}"] = row
            shown = ", ".join(
                f"{n}: {e:.3f}±{s:.3f}" for n, e, s in zip(row["lengths"], row["elbo"], row["se"], strict=True)
            )
            print(f"{name:<10} {momentum:<9} {shown}; stored {row['stored']}", flush=True)
            options["keep"]("paper", found)
    return found


def best(options):
    """The largest bound of a few involutive maps, at no more than the gradients per draw of the stored best."""
    found = options["found"].get("best", {})
    for name, candidates in CANDIDATES.items():
        if name in found:
            continue
        stored, length, leapfrogs = targets.SYNTHETIC[name]["best"]
        target, reference = target_of(name), reference_of(name)
        rows = []
        for kernel, steps, step, longest in candidates:
            assert steps * longest <= length * leapfrogs
            flow_map = InvolutiveMap(step, reference.scale, kernel, steps)
            lengths = [longest // 4, longest // 2, longest]
            rows.append(
                curve(target, flow_map, reference, lengths) | {"kernel": kernel, "leapfrogs": steps, "step": step}
            )
        chosen = max(rows, key=lambda row: max(row["elbo"]))
        at = int(np.argmax(chosen["elbo"]))
        found[name] = {
            "stored": stored,
            "stored_gradients": length * leapfrogs,
            "elbo": chosen["elbo"][at],
            "se": chosen["se"][at],
            "gradients": chosen["lengths"][at] * chosen["leapfrogs"],
            "candidates": rows,
        }
        print(f"{name:<10} {found[name]['elbo']:.4f} ± {found[name]['se']:.4f}, stored {stored}", flush=True)
        options["keep"]("best", found)
    return found


def summary(posterior):
    """Of a fit: bound, evidence, k-hat, choice, cost."""
    flow, diagnosis = posterior.approximation, posterior.diagnose()
    bound, error = posterior.elbo()
    evidence = posterior.evidence()
    return {
        "elbo": bound,
        "se": error,
        "log_evidence": evidence.log_evidence,
        "evidence_se": evidence.se,
        "k_hat": diagnosis["k-hat"].value,
        "length": int(flow.length),
        "step": np.asarray(flow.flow.flow_map.step_size).tolist(),
        "first_elbo": float(flow.curve.elbo[0]),
        "gradients": int(posterior.record["evaluations"]),
        "gradients_per_draw": (int(flow.length) - 1) * flow.flow.flow_map.gradients,
        "seconds": posterior.record["seconds"],
        "density_error": diagnosis["inversion"].value,
    }


def default(options):
    """What a user gets without settings; log Z = 0."""
    found = options["found"].get("default", {})
    for name in options["among"](targets.SYNTHETIC):
        if name not in found:
            posterior = pf.fit(target_of(name), pf.MixFlow(), key=0, num_samples=1000, progress=False)
            found[name] = summary(posterior)
            print(f"{name:<10} {found[name]}", flush=True)
            options["keep"]("default", found)
    return found


REFERENCES = {
    "default": {},
    "its mean-field": {"covariance": "diagonal"},
    "mean-field ADVI": {"covariance": "diagonal"},
}


def references(options, keys=4):
    """Bounds of the default reference and of two mean-field ones: means over keys, standard errors over them."""
    found = options["found"].get("references", {})
    for name in ("banana", "funnel 2", "warped"):
        target = target_of(name)
        for kind, settings in REFERENCES.items():
            if f"{name}, {kind}" in found:
                continue
            rows = []
            for key in range(keys):
                given = dict(settings)
                if kind == "mean-field ADVI":
                    fitted = pf.fit(target, pf.ADVI(num_steps=3000, covariance="diagonal"), key=key, progress=False)
                    given["reference"] = fitted.approximation
                posterior = pf.fit(target, pf.MixFlow(**given), key=key, num_samples=200, progress=False)
                rows.append(summary(posterior))
            elbo = np.array([row["elbo"] for row in rows])
            shown = ("elbo", "se", "step", "length", "gradients", "log_evidence", "k_hat")
            found[f"{name}, {kind}"] = {
                "elbo": elbo.mean(),
                "se": elbo.std(ddof=1) / np.sqrt(keys),
                "keys": [{field: row[field] for field in shown} for row in rows],
            }
            print(f"{name:<10} {kind:<16} {elbo.mean():.4f} ± {elbo.std(ddof=1) / np.sqrt(keys):.4f}", flush=True)
            options["keep"]("references", found)
    return found


def against_nuts(target, method, seed=0):
    """A MixFlow's bound and evidence, and bridge sampling of NUTS draws."""
    posterior = pf.fit(target, method, key=seed, num_samples=1000, progress=False)
    nuts = pf.fit(target, pf.NUTS(), key=seed + 1, num_samples=1000, num_chains=4, progress=False)
    bridge = nuts.evidence()
    row = summary(posterior) | {"bridge": bridge.log_evidence, "bridge_se": bridge.se}
    row["nuts_gradients"] = int(nuts.record["evaluations"])
    row["nuts_ess"] = float(np.min(nuts.summary(round_to=None)["ess_bulk"].astype(float)))
    return row


def boston(options):
    """The paper's linear regression; its data and ours may be standardised by another divisor (n, n − 1)."""
    if options["uci"] is None:
        return None
    found = options["found"].get("boston", {})
    x, y = targets.boston(options["uci"])
    target = pf.Target.from_log_density(targets.linear_regression, np.zeros(x.shape[1] + 1), data=(x, y))
    if "default" not in found:
        found["default"] = against_nuts(target, pf.MixFlow(num_leapfrog=10, max_length=500))
        print("boston", found["default"], flush=True)
        options["keep"]("boston", found)
    method = pf.ADVI(num_steps=5000, covariance="diagonal")
    fitted = pf.fit(target, method, key=0, num_samples=50, progress=False).approximation
    reference = orbit.Reference(fitted.mean(), jnp.sqrt(jnp.diagonal(fitted.covariance())))
    for step in (0.15, 0.3):
        if f"L 30, step {step}" not in found:
            flow_map = InvolutiveMap(step, reference.scale, "hmc", 30)
            row = curve(target, flow_map, reference, [1, 100, 250, 500], batch=64)
            found[f"L 30, step {step}"] = row
            print("boston", step, row, flush=True)
            options["keep"]("boston", found)
    return found | {"stored": targets.BOSTON["stored"], "stored_gradients": 30 * 1500}


def regressions(options):
    """Bounds of the paper's regressions against the stored ones and bridge sampling of NUTS draws."""
    if options["authors"] is None:
        return None
    found = options["found"].get("regressions", {})
    for name in options["among"](targets.REGRESSIONS):
        if name not in found:
            density, load, dim = targets.REGRESSIONS[name]["density"]
            data = load(Path(options["authors"]) / "example")
            target = pf.Target.from_log_density(density, np.zeros(dim), data=data)
            leapfrogs, _, length = targets.REGRESSIONS[name]["paper"]
            row = against_nuts(target, pf.MixFlow(num_leapfrog=10, max_length=500))
            found[name] = row | {"stored": targets.REGRESSIONS[name]["stored"], "stored_gradients": leapfrogs * length}
            print(name, found[name], flush=True)
            options["keep"]("regressions", found)
    return found


def posteriordb(options):
    """Bounds and evidences of posteriors with reference draws."""
    if options["posteriordb"] is None:
        return None
    from pushforward.models.posteriordb import load

    found = options["found"].get("posteriordb", {})
    for name in POSTERIORS:
        if name not in found:
            target = load(name, options["posteriordb"]).target()
            found[name] = against_nuts(target, pf.MixFlow(num_leapfrog=10, max_length=400))
            print(name, found[name], flush=True)
            options["keep"]("posteriordb", found)
    return found


@jax.jit
def distances(flow, target, keys, length):
    """Euclidean distances of x alone after N − 1 maps and their inverses: momenta may be further off."""

    def one(key):
        at = families.begin_walk(families.begin_draw(key, flow, target.log_density)[0], flow)
        there = families.walk(at, length - 1, flow, target.log_density, lambda j: j, ahead=True)
        back = families.walk(there, length - 1, flow, target.log_density, lambda j: j, ahead=False)
        return jnp.linalg.norm(back.state.at.x - at.state.at.x)

    return jax.vmap(one)(keys)


def stability(options):
    """Laplace and normal momenta and involutive HMC, 64 and 32 bits, on cross and banana."""
    found = {}
    for name, leapfrogs, step in (("cross", 60, 0.0035), ("banana", 50, 0.013)):
        for bits in (64, 32):
            with jax.enable_x64(bits == 64):
                target, reference = target_of(name), reference_of(name)
                one = jnp.ones(2)
                maps = {
                    "laplace": HamiltonianMap(step, one, leapfrogs, "laplace"),
                    "gaussian": HamiltonianMap(step, one, leapfrogs, "gaussian"),
                    "involutive": InvolutiveMap(step, one, "hmc", leapfrogs),
                }
                for momentum, flow_map in maps.items():
                    flow, keys = Flow(flow_map, reference, None), jax.random.split(jax.random.key(0), 64)
                    row = {
                        n: float(np.median(distances(flow, target, keys, jnp.asarray(n))))
                        for n in (2, 10, 50, 100, 200, 500, 1000)
                    }
                    found[f"{name}, {momentum}, {bits}"] = row
                    print(name, momentum, bits, row, flush=True)
    return found


def iid(posterior, target, gradients_per_draw, n=1000):
    """Draws per gradient and KSD of ``n`` independent draws; the fit's gradients count."""
    total = int(posterior.record["evaluations"]) + n * gradients_per_draw
    return {"ess": n, "gradients": total, "ess_per_gradient": n / total, "ksd": stein(posterior, target)}


def stein(posterior, target, n=1000):
    """KSD of ``n`` draws, evenly spaced, in unconstrained coordinates, by the kernel (1 + r²)^−½ of the paper."""
    draws = posterior.unconstrained().reshape(-1, target.dim)
    return float(np.sqrt(pf.discrepancies.ksd(draws[:: len(draws) // n][:n], target, bandwidth=1.0).squared))


def along(posterior, draws, n=64):
    """Effective draws of the mean of each coordinate by averages along ``n`` trajectories, the least."""
    flow = posterior.approximation
    _, error = flow.expect(jax.random.key(1), lambda u: u, n)
    gradients = n * (int(flow.length) - 1) * flow.flow.flow_map.gradients
    ess = float(np.min(draws.var(0) / np.asarray(error) ** 2))
    return {"ess_along": ess, "ess_along_per_gradient": ess / max(gradients, 1)}


def cost(options):
    """Effective draws per gradient and KSD of MixFlows, NUTS (warm-up counted), planar and RealNVP flows; bounds."""
    found = options["found"].get("cost", {})
    cases = {name: target_of(name) for name in ("banana", "funnel 5", "cross", "funnel 20", "funnel 2")}
    if options["posteriordb"] is not None:
        from pushforward.models.posteriordb import load

        cases |= {name: load(name, options["posteriordb"]).target() for name in POSTERIORS[1:4]}
    for name in options["among"](cases):
        target = cases[name]
        row = found.setdefault(name, {})
        if "nuts" not in row:
            nuts = pf.fit(target, pf.NUTS(), key=0, num_samples=1000, num_chains=4, progress=False)
            ess = float(np.min(nuts.summary(round_to=None)["ess_bulk"].astype(float)))
            gradients = int(nuts.record["evaluations"])
            row["nuts"] = {"ess": ess, "gradients": gradients, "ess_per_gradient": ess / gradients}
            row["nuts"]["ksd"] = stein(nuts, target)
        if "mixflow" not in row:
            flow = pf.fit(target, pf.MixFlow(num_leapfrog=10), key=0, num_samples=1000, progress=False)
            about = summary(flow)
            row["mixflow"] = about | {"fit_gradients": about["gradients"]}
            row["mixflow"] |= iid(flow, target, about["gradients_per_draw"])
            row["mixflow"] |= along(flow, flow.unconstrained().reshape(-1, target.dim))
        for family in ("planar", "realnvp"):
            if family in row:
                continue
            method = pf.NormalizingFlow(family, num_steps=2000)
            trained = pf.fit(target, method, key=0, num_samples=1000, progress=False)
            bound, error = trained.elbo()
            evidence = trained.evidence()
            row[family] = {"elbo": bound, "se": error, "log_evidence": evidence.log_evidence}
            row[family] |= {"evidence_se": evidence.se, "k_hat": trained.diagnose()["k-hat"].value}
            row[family] |= iid(trained, target, 0)
        print(name, json.dumps(row), flush=True)
        options["keep"]("cost", found)
    return found


def figure(found):
    """Bounds by length, and round-trip errors."""
    import matplotlib.pyplot as plt

    names = [name for name in targets.SYNTHETIC if f"{name}, laplace" in found.get("paper", {})]
    if names:
        fig, axes = plt.subplots(3, 3, figsize=(11, 8), layout="constrained")
        for axis in axes.flat[len(names) :]:
            axis.axis("off")
        for axis, name in zip(axes.flat, names, strict=False):
            for momentum, colour in (("laplace", "C0"), ("gaussian", "C1")):
                row = found["paper"].get(f"{name}, {momentum}")
                if row:
                    axis.errorbar(
                        row["lengths"], row["elbo"], 2 * np.array(row["se"]), color=colour, label=f"{momentum} momentum"
                    )
            stored = targets.SYNTHETIC[name]["stored"] or {}
            axis.plot(list(stored), list(stored.values()), "kx", label="stored, Laplace")
            if name in found.get("best", {}):
                row = max(found["best"][name]["candidates"], key=lambda row: max(row["elbo"]))
                axis.errorbar(row["lengths"], row["elbo"], 2 * np.array(row["se"]), color="C2", label="involutive HMC")
            axis.axhline(0.0, color="0.7", lw=0.8)
            axis.set(xscale="log", title=name, ylim=(max(-3.0, axis.get_ylim()[0]), 0.15))
        axes[0, 0].legend(fontsize=8)
        fig.supxlabel("length N")
        fig.supylabel("evidence bound (log Z = 0)")
        fig.savefig(RESULTS / "mixflow.png", dpi=100)
    if "stability" in found:
        fig, axes = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True, layout="constrained")
        for axis, name in zip(axes, ("cross", "banana"), strict=True):
            for i, kind in enumerate(("laplace", "gaussian", "involutive")):
                for bits, style in ((64, "-"), (32, "--")):
                    row = found["stability"][f"{name}, {kind}, {bits}"]
                    errors = np.maximum(list(row.values()), 1e-17)
                    axis.loglog([int(n) for n in row], errors, style, color=f"C{i}", label=f"{kind}, {bits} bits")
            axis.set(title=name, xlabel="length N")
        axes[0].set_ylabel("round-trip error")
        axes[1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
        fig.savefig(RESULTS / "mixflow_stability.png", dpi=100)


PARTS = (paper, best, stability, default, references, cost, posteriordb, boston, regressions)
PARTS = {part.__name__: part for part in PARTS}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}, figure")
    parser.add_argument("--uci", help="folder of the UCI regression sets")
    parser.add_argument("--posteriordb", help="folder of posteriordb")
    parser.add_argument("--authors", help="clone of the authors' Ergodic-variational-flow-code")
    parser.add_argument("--only", nargs="+", help="names of targets")
    given = parser.parse_args()
    path = RESULTS / "mixflow.json"
    found = json.loads(path.read_text()) if path.exists() else {}

    def keep(part, value):
        found[part] = value
        path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")

    def among(names):
        return [name for name in names if given.only is None or name in given.only]

    places = {"uci": given.uci, "posteriordb": given.posteriordb, "authors": given.authors}
    options = places | {"found": found, "keep": keep, "among": among}
    for part in given.parts or [name for name in PARTS if name not in found]:
        if part in PARTS:
            with jax.enable_x64(True):
                value = PARTS[part](options)
            if value is not None:
                keep(part, value)
    figure(found)


if __name__ == "__main__":
    main()
