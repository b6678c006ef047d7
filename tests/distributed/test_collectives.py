"""No program that processes run together holds collectives in no order."""

import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.distributed.collectives import disordered, pairs

ROOT = Path(__file__).resolve().parents[2]
CHILD = """
import sys
import jax.numpy as jnp
import pushforward as pf
from tests.distributed.child import D, data, log_likelihood, log_prior, logistic

rows, local = logistic(), pf.Target.from_local_rows(log_prior, log_likelihood, data(), jnp.zeros(D))
quiet = {"key": 3, "progress": False, "num_samples": 10, "num_warmup": 20}
particles = {"num_particles": 16, "num_steps": 5}
fits = {
    "agents": lambda: pf.fit(local.sharded(8), pf.DistributedADMM("ring", tolerance=0.3), num_chains=2, **quiet),
    "bare": lambda: pf.fit(local.sharded(8), pf.DistributedADMM("ring", rho=5.0, plan=False), num_chains=1, **quiet),
    "shared": lambda: pf.fit(rows.sharded(6), pf.DistributedADMM("ring", tolerance=0.3), num_chains=2, **quiet),
    "federated": lambda: pf.fit(local.sharded(8), pf.FALD(), num_chains=2, **quiet),
    "chain": lambda: pf.fit(local, pf.NUTS(), num_chains=1, **quiet),
    "particles": lambda: pf.fit(rows, pf.SVNG(**particles), key=3, progress=False),
    "patience": lambda: pf.fit(rows, pf.SVGD(patience=3, **particles), key=3, progress=False),
    "batches": lambda: pf.fit(
        rows, pf.SVGD(batch_size=16, learning_rate=0.1, **particles), key=3, progress=False, mesh="data"
    ),
    "variational": lambda: pf.fit(rows, pf.FBGVI(num_steps=20), key=3, progress=False, mesh="data"),
    "variational_batches": lambda: pf.fit(
        rows, pf.FBGVI(num_steps=20, batch_size=16), key=3, progress=False, mesh="data"
    ),
    "path": lambda: pf.fit(rows, pf.Pathfinder(), key=3, progress=False, mesh="data"),
    "mode": lambda: pf.fit(rows, pf.Laplace(), key=3, progress=False, mesh="data"),
    "batched_langevin": lambda: pf.fit(rows, pf.SGLD(batch_size=16), mesh="data", num_chains=1, **quiet),
    "batched_hamiltonian": lambda: pf.fit(rows, pf.SGHMC(batch_size=16), mesh="data", num_chains=1, **quiet),
}
for name in sys.argv[1:]:
    fits[name]()
"""
SLOW = [
    "patience",
    "shared",
    "federated",
    "chain",
    "particles",
    "batches",
    "variational",
    "variational_batches",
    "path",
    "mode",
    "batched_langevin",
    "batched_hamiltonian",
]


def compiled(fits: list[str], folder: Path) -> list[str]:
    """The programs of these fits on four devices."""
    flags = f"--xla_force_host_platform_device_count=4 --xla_dump_to={folder} --xla_dump_hlo_as_text"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, *fits], cwd=ROOT, env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    return [file.read_text() for file in folder.glob("*after_optimizations.txt")]


@pytest.mark.parametrize("fits", [["agents"], pytest.param(SLOW, marks=pytest.mark.slow)])
def test_no_loop_with_collectives_runs_beside_others(fits: list[str], tmp_path: Path) -> None:
    assert any("all-gather" in program for program in compiled(fits, tmp_path))
    assert not list(disordered(tmp_path))


def test_no_curvature_leaves_an_agent_s_device(tmp_path: Path) -> None:
    shapes = re.findall(r" = \w+\[([\d,]+)\]\S* all-gather\(", "".join(compiled(["bare"], tmp_path)))
    sizes = [math.prod(map(int, shape.split(","))) for shape in shapes]
    # At most an iterate (3 numbers), residual, evaluations and a flag of each of 8 agents; a Hessian would be 9.
    assert sizes
    assert max(sizes) <= 8 * 6


def test_a_loop_that_nothing_waits_for_is_found() -> None:
    program = """
%body (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %g = f32[8]{0} all-gather(%p), dimensions={0}
}

ENTRY %main (a: f32[8]) -> (f32[8], f32[8]) {
  %a = f32[8]{0} parameter(0)
  %before = f32[8]{0} all-gather(%a), dimensions={0}
  %loop = (f32[8]{0}, /*index=1*/f32[8]{0}) while(%a), condition=%never, body=%body
  %waits = f32[8]{0} all-reduce(%loop), to_apply=%add
  %does_not = f32[8]{0} all-reduce(%before), to_apply=%add
}
"""
    assert list(pairs(program)) == [("loop", "does_not")]
