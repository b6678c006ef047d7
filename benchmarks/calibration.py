"""Calibration of NUTS on five hierarchical models, and how small an error calibration sees.

    python benchmarks/calibration.py [nuts] [power] [--fits 200]

``nuts`` fits n simulated data sets of each model. ``power`` ranks draws of a normal whose sd is w times the true one,
as `pushforward.calibrate` would of one scalar with a method that is exact but for its width, and counts how often that
fails.
"""

import argparse
import datetime
import json
import os
import platform
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


def varying_intercepts(group, y=None):
    import numpyro
    import numpyro.distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("groups", 6):
        a = numpyro.sample("a", dist.Normal(mu, tau))
    numpyro.sample("y", dist.Normal(a[group], sigma), obs=y)


def varying_slopes(x, group, y=None):
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0).expand([2]).to_event(1))
    z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([5, 2]).to_event(2))
    b = numpyro.deterministic("b", mu + tau * z)
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(b[group, 0] + b[group, 1] * jnp.asarray(x), sigma), obs=y)


def poisson_rates(exposure, y=None):
    import numpyro
    import numpyro.distributions as dist

    shape = numpyro.sample("shape", dist.Gamma(4.0, 2.0))
    rate = numpyro.sample("rate", dist.Gamma(4.0, 2.0))
    with numpyro.plate("units", len(exposure)):
        theta = numpyro.sample("theta", dist.Gamma(shape, rate))
        numpyro.sample("y", dist.Poisson(theta * exposure), obs=y)


def binomial_groups(trials, y=None):
    import numpyro
    import numpyro.distributions as dist

    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = numpyro.sample("tau", dist.HalfNormal(0.7))
    with numpyro.plate("groups", len(trials)):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Binomial(trials, logits=mu + tau * z), obs=y)


def targets():
    import pushforward as pf

    rng = np.random.default_rng(0)
    group = np.repeat(np.arange(6), 5)
    five = np.repeat(np.arange(5), 6)
    return {
        "eight schools": pf.models.get("eight_schools").target(),
        "varying intercepts": pf.Target.from_numpyro(varying_intercepts, group, np.zeros(30)),
        "varying slopes": pf.Target.from_numpyro(varying_slopes, rng.normal(size=30), five, np.zeros(30)),
        "Poisson rates": pf.Target.from_numpyro(poisson_rates, np.linspace(1.0, 8.0, 8), np.zeros(8, int)),
        "binomial groups": pf.Target.from_numpyro(binomial_groups, np.full(8, 12), np.zeros(8, int)),
    }


def nuts(fits):
    import pushforward as pf

    rows = []
    for name, target in targets().items():
        begun = time.perf_counter()
        found = pf.calibrate(target, pf.NUTS(), fits, progress=False)
        row = {
            "model": name, "dimension": target.dim, "quantities": len(found.ranks), "fits": found.num_fits,
            "failed": len(found.failed), "p": found.p_value, "passed": found.passed,
            "short": int((found.ess < found.num_draws).sum()), "warned": found.warned,
            "seconds": time.perf_counter() - begun,
        }  # fmt: skip
        rows.append(row)
        print(row, flush=True)
    return rows


def power(fits, repeats=200, draws=100):
    """Share of calibrations that fail at 5 %, by the width of the draws and the number of data sets."""
    from pushforward.infer.study.uniformity import check_uniform

    rng = np.random.default_rng(0)
    rows = []
    for n in (200, 1000):
        for width in (0.8, 0.9, 1.0, 1.25):
            failed = 0
            for _ in range(repeats if n < 1000 else repeats // 4):
                truth = rng.normal(size=(n, 1))
                ranks = (width * rng.normal(size=(n, draws)) < truth).sum(axis=1)
                failed += check_uniform(ranks, draws).p_value <= 0.05
            rows.append({"fits": n, "width": width, "failed": failed / (repeats if n < 1000 else repeats // 4)})
            print(rows[-1], flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=["nuts", "power"], choices=["nuts", "power"])
    parser.add_argument("--fits", type=int, default=200)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "calibration.json")
    args = parser.parse_args()
    record = json.loads(args.out.read_text()) if args.out.exists() else {}
    machine = {"date": datetime.date.today().isoformat(), "cores": os.cpu_count(), "cpu": platform.processor()}
    for name in args.sections:
        rows = {"nuts": nuts, "power": power}[name](args.fits)
        record[name] = {"machine": machine | {"load": round(os.getloadavg()[0], 1)}, "rows": rows}
        args.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
