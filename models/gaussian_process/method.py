"""`DoubleKL`: variational inference for a latent Gaussian process with sparse inverse Cholesky factors.

Prior and posterior of the process at the data get sparse Cholesky factors of their *precisions*, each the closest in a
Kullback–Leibler divergence ([1]_). Hyper-parameters maximise the ELBO: its gradient at the optimal q is the gradient of
the ELBO with q held fixed, of which everything is exact but tr(Uᵀ Σ U), by probes z of random signs on points that are
far apart (`pattern.colours`): ∂ ½ zᵀ Uᵀ Σ U z = (Σ U z)ᵀ ∂(U z), two solves in O(n m) each. The probes stay the same
over a stage, so that BFGS climbs a smooth function of the hyper-parameters' logarithms (`climb`).

Order and pattern are found on the host between stages, for the length scales reached: "order 1" and "order 2" learn,
"posterior" brings q to its fixed point. Where no length scale has moved by a fifth, the last order serves on: another
one has another sparse prior, whose evidence has its maximum elsewhere.

Differs from the released code of [1]_: natural gradients instead of Adam on (ν, V), quasi-Newton steps instead of Adam
on hyper-parameters, quadrature instead of 5,000 draws, all columns in each step.

Per step O(n m³) for U and its gradient, O(n m²) for V; per iteration of the last stage O(n a²) for the variances over a
reduced ancestors.

References
----------
.. [1] J. Cao et al. (2023). ICML. arXiv:2301.13303.
"""

import dataclasses
from typing import Any, ClassVar, Literal, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ...infer.errors import InvalidArgument, NotAvailable
from ...infer.method import AbstractMethod, Budget, Stage
from ...infer.target import Target
from ...infer.validate import check_count, check_positive
from ...infer.variational.sparse_cholesky.factor import Structure, backward, forward, times, times_transpose
from .climb import Climb
from .fixed_point import Iteration, iterate, move_mean, posterior_factor, sites
from .latent import LatentGP
from .likelihoods import Gaussian
from .pattern import Extent, build_pattern, colours, make_problem
from .posterior import LatentPosterior

ORDERS = 2
"""Orders under which hyper-parameters are learned, before the last one."""
INNER = 3
"""Moves of the mean per evaluation, unless the likelihood is Gaussian."""
MOVED = 0.2
"""Change of a log length scale up to which an order and its pattern serve on."""


class DoubleKLState(eqx.Module):
    """State of a run; data in the user's order.

    Parameters
    ----------
    climb
        Hyper-parameters, see `LatentGP.free`, and what is known of the ELBO as their function.
    mean, variance, precision
        ν, v, and the sites' λ.
    values
        V in maximin order, of the last iteration of the fixed point.
    scales
        Length scales for which the order was found.
    elbo
        Of the last step.
    num_steps
        Evaluations of the ELBO and its gradient in this stage.
    change
        Largest change of a mean in the last iteration, in standard deviations.
    step_size, shift
        β of the last move of the mean; the shift that the incomplete Cholesky factor took.
    """

    climb: Climb
    mean: Float[Array, " n"]
    variance: Float[Array, " n"]
    precision: Float[Array, " n"]
    values: Float[Array, "n m"]
    scales: Float[Array, " d"]
    elbo: Float[Array, ""]
    num_steps: Int[Array, ""]
    change: Float[Array, ""]
    step_size: Float[Array, ""]
    shift: Float[Array, ""]


class DoubleKLInfo(NamedTuple):
    """What is known of a step."""

    elbo: Array
    change: Array
    step_size: Array
    shift: Array
    num_evaluations: Array


class DoubleKL(AbstractMethod):
    """Variational inference with sparse inverse Cholesky factors, for a `pushforward.models.LatentGP`.

    Parameters
    ----------
    rho
        Radius of the pattern in units of each point's maximin distance; larger is more accurate and costs more. By
        default 2 for up to three inputs, 1.5 for more. "auto": the least of 1.5, 2, …, 8 from which the next one would
        bring the sparse prior nearer to the process's by less than 0.01 nats per observation.
    neighbors
        Instead of ``rho``: each column has this many nearest earlier points.
    learn
        Whether hyper-parameters are learned; else they stay those of the target.
    num_steps
        Evaluations of the ELBO and its gradient under each order at most.
    gain
        Nats that a further step must promise for learning to go on.
    num_probes
        Random vectors for the trace and the variances. 32 move hyper-parameters by 0.03 to 0.2 of what the data leave
        open, most where observations say little.
    max_iterations
        Of the fixed point in the end.
    tolerance
        Largest change of a mean, in standard deviations, at which that stops.
    allow_float32
        Whether a run in 32 bits is let through.

    Raises
    ------
    InvalidArgument
        A setting is out of range, or the run is in 32 bits.
    NonFinite
        A covariance of neighbours is not positive definite.

    References
    ----------
    Cao, Kang, Jimenez, Sang, Schäfer & Katzfuss (2023), ICML, arXiv:2301.13303.
    """

    rho: float | Literal["auto"] | None = eqx.field(static=True, default=None)
    neighbors: int | None = eqx.field(static=True, default=None)
    learn: bool = eqx.field(static=True, default=True)
    num_steps: int = eqx.field(static=True, default=40)
    gain: float = 0.01
    num_probes: int = eqx.field(static=True, default=32)
    max_iterations: int = eqx.field(static=True, default=50)
    tolerance: float = 1e-4
    allow_float32: bool = eqx.field(static=True, default=False)
    phase: int = eqx.field(static=True, default=0)
    pattern: Structure | None = None
    colours: Int[Array, " n"] | None = None
    scales: Float[Array, " d"] | None = None

    kind: ClassVar = "approximation"
    requires: ClassVar[tuple[str, ...]] = ("latent_gp",)
    needs_start: ClassVar[bool] = False
    exact: ClassVar[bool] = False
    density: ClassVar[bool] = True
    default_chains: ClassVar[int] = 1
    warning: ClassVar[str] = (
        "Sparse prior, point estimates: the process is that of a sparse factor of its prior's precision, and intervals "
        "leave out what is not known of the hyper-parameters."
    )
    source: ClassVar[str] = "Cao et al. 2023"

    def __check_init__(self) -> None:
        if self.rho is not None and self.neighbors is not None:
            raise InvalidArgument(f"rho={self.rho!r} and neighbors={self.neighbors!r} exclude each other; give one.")
        given = isinstance(self.rho, int | float) and np.isfinite(self.rho) and self.rho >= 1
        if self.rho is not None and self.rho != "auto" and not given:
            raise InvalidArgument(f'rho must be at least 1, or "auto", got {self.rho!r}.')
        if self.neighbors is not None:
            check_count("neighbors", self.neighbors)
        for name in ("num_steps", "num_probes", "max_iterations"):
            check_count(name, getattr(self, name))
        for name in ("tolerance", "gain"):
            check_positive(name, getattr(self, name))

    def stages(self, budget: Budget) -> tuple[Stage, ...]:
        """Learning with an order each, then the fixed point."""
        del budget
        last = Stage("posterior", dataclasses.replace(self, phase=ORDERS), self.max_iterations)
        if not self.learn:
            return (last,)
        learning = [
            Stage(f"order {k + 1}", dataclasses.replace(self, phase=k), self.num_steps, keep=False)
            for k in range(ORDERS)
        ]
        return (*learning, last)

    # -- host ---------------------------------------------------------------------------------------------------------

    def prepare(self, key: PRNGKeyArray, target: Target, start: Any) -> "DoubleKL":
        """Order and pattern for the length scales reached."""
        del key
        gp = cast("LatentGP", target)
        bits = jnp.finfo(jnp.zeros(()).dtype).bits
        if bits < 64 and not self.allow_float32:
            raise InvalidArgument(
                f"precision={bits} leaves DoubleKL too few digits for sums of logarithms and near-singular blocks; use "
                f"precision=64, or allow_float32=True with a nugget of at least 1e-4."
            )
        if isinstance(start[0], DoubleKLState):
            point = jnp.asarray(start[0].climb.point)
            gp = gp.with_free(point if point.ndim == 1 else point[0])
        scales = np.asarray(gp.kernel.scales(gp.X.shape[1]))
        if isinstance(start[0], DoubleKLState):
            last = np.reshape(np.asarray(start[0].scales), (-1, len(scales)))[0]
            scales = last if drift(last, scales) <= MOVED else scales
        structure = build_pattern(gp, self.extent(), scales)
        found = colours((np.asarray(gp.X) / scales)[np.asarray(structure.order)], self.num_probes)
        return eqx.tree_at(
            lambda m: (m.pattern, m.colours, m.scales),
            self,
            (structure, jnp.asarray(found), jnp.asarray(scales)),
            is_leaf=lambda x: x is None,
        )

    def extent(self) -> Extent:
        """How the pattern is chosen."""
        return Extent(self.rho, self.neighbors)

    def result(self, state: DoubleKLState, target: Target) -> LatentPosterior:
        """Q and the learned hyper-parameters."""
        state = jax.tree.map(lambda x: jnp.asarray(x[0]), state)
        gp = cast("LatentGP", target).with_free(state.climb.point).with_structure(self._structure())
        return LatentPosterior(gp, state.mean, state.values, state.variance, state.elbo, *self.extent())

    def remarks(self, state: DoubleKLState, target: Target, result: Any) -> list[dict[str, Any]]:
        """Whether the fixed point was reached and the pattern fits the length scales."""
        state = jax.tree.map(lambda x: np.asarray(x[0]), state)
        change = float(state.change)
        fine = change < float(self.tolerance)
        message = f"The last iteration moved a mean by {change:.2g} sd (threshold {float(self.tolerance):g})."
        found: list[dict[str, Any]] = [
            {
                "level": "ok" if fine else "warning",
                "name": "fixed point",
                "message": message + ("" if fine else " Raise max_iterations."),
                "value": change,
                "threshold": float(self.tolerance),
            }
        ]
        moved = drift(state.scales, result.gp.kernel.scales(len(state.scales)))
        if moved > MOVED:
            found.append(
                {
                    "level": "warning",
                    "name": "order",
                    "message": f"A length scale is {np.exp(moved):.2g} times what it was when the order was found; fit "
                    f"again from posterior.target.",
                    "value": moved,
                    "threshold": MOVED,
                }
            )
        if state.shift > 0:
            found.append(
                {
                    "level": "warning",
                    "name": "incomplete Cholesky",
                    "message": f"The posterior's factor took a diagonal shift of {float(state.shift):.1g} to exist; "
                    f"raise rho or the nugget.",
                    "value": float(state.shift),
                    "threshold": 0,
                }
            )
        return found

    # -- compiled -----------------------------------------------------------------------------------------------------

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> DoubleKLState:
        """The likelihood's start, or where the last stage ended."""
        del key
        gp = cast("LatentGP", target)
        nothing = jnp.zeros(self._structure().columns.shape)
        if isinstance(start, DoubleKLState):
            zero = jnp.zeros((), jnp.int32)
            new = (start.climb.anew(), zero, nothing, self._scales())
            return eqx.tree_at(lambda s: (s.climb, s.num_steps, s.values, s.scales), start, new)
        y = jnp.asarray(gp.y, float)
        zero = jnp.zeros((), y.dtype)
        return DoubleKLState(
            Climb.at(gp.free()), gp.likelihood.start(y), jnp.zeros_like(y), jnp.ones_like(y), nothing,
            self._scales(), -jnp.inf + zero, jnp.zeros((), jnp.int32), jnp.inf + zero, zero, zero,
        )  # fmt: skip

    def step(
        self, key: PRNGKeyArray, state: DoubleKLState, target: Target, t: Array
    ) -> tuple[DoubleKLState, DoubleKLInfo]:
        """One step of learning, or one iteration of the fixed point."""
        del key, t
        gp = cast("LatentGP", target)
        new = self._iterate(state, gp) if self.phase == ORDERS else self._learn(state, gp)
        evaluations = jnp.ones((), jnp.int32)
        return new, DoubleKLInfo(new.elbo, new.change, new.step_size, new.shift, evaluations)

    def done(self, state: DoubleKLState) -> Bool[Array, ""]:
        """In learning, once a step promises little; in the end, once means stand still."""
        if self.phase == ORDERS:
            return state.change < self.tolerance
        return state.climb.arrived(self.gain) | (state.num_steps >= self.num_steps)

    def _iterate(self, state: DoubleKLState, gp: LatentGP) -> DoubleKLState:
        """One iteration of the fixed point, see `fixed_point`; everything in maximin order inside."""
        s = self._structure()
        gp = gp.with_free(state.climb.point)
        problem = make_problem(gp, s, gp.columns(s))
        return self._put(state, s, iterate(problem, state.mean[s.order], state.variance[s.order]))

    def _learn(self, state: DoubleKLState, gp: LatentGP) -> DoubleKLState:
        """The best q at the hyper-parameters asked for, and the ELBO and its gradient there."""
        s, free = self._structure(), state.climb.asked()
        key_trace, key_draw = jax.random.split(jax.random.key(self.phase))

        def prior(free: Array) -> tuple[Array, Array]:
            here = gp.with_free(free)
            return here.columns(s), here.mean.at(jnp.asarray(gp.X))[s.order]

        (u, _), pull = jax.vjp(prior, free)
        problem = make_problem(gp.with_free(free), s, u)
        normal = jax.random.normal(key_draw, (self.num_probes, gp.dim), u.dtype)

        def improve(carry: tuple, _: None) -> tuple[tuple, tuple]:
            mean, variance = carry
            precision = sites(problem.likelihood.expected(mean, variance, problem.y))
            v, shift = posterior_factor(problem, precision)
            variance = jnp.mean(jax.vmap(lambda e: forward(s, v, e))(normal) ** 2, 0)
            moved, beta = move_mean(problem, v, precision, mean, variance, 1e-6)
            return (moved, variance), (v, precision, beta, shift)

        rounds = 1 if isinstance(problem.likelihood, Gaussian) else INNER
        first = (state.mean[s.order], state.variance[s.order])
        (mean, variance), found = jax.lax.scan(improve, first, None, rounds)
        v, precision, beta, shift = jax.tree.map(lambda x: x[-1], found)

        sign = jax.random.rademacher(key_trace, (gp.dim,), u.dtype)
        probes = jnp.zeros((self.num_probes, gp.dim), u.dtype).at[self.colours, jnp.arange(gp.dim)].set(sign)
        image = jax.vmap(lambda z: times(s, u, z))(probes)
        solved = jax.vmap(lambda w: forward(s, v, backward(s, v, w)))(image)  # Σ U z

        def objective(u: Array, mu: Array, free: Array) -> Array:
            white = times_transpose(s, u, mean - mu)
            trace = jnp.sum(solved * jax.vmap(lambda z: times(s, u, z))(probes))
            fit = jnp.sum(gp.with_free(free).likelihood.expected(mean, variance, problem.y).value)
            return fit - 0.5 * jnp.sum(white**2) - trace + jnp.sum(jnp.log(u[:, -1]))

        value, (along_u, along_mu, along_free) = jax.value_and_grad(objective, (0, 1, 2))(u, problem.mu, free)
        # Linear in U, the probes' term counts twice in the value.
        trace = jnp.sum(solved * image)
        elbo = value + 0.5 * trace - jnp.sum(jnp.log(v[:, -1])) + 0.5 * gp.dim
        gradient = (pull((along_u, along_mu))[0] + along_free) * jnp.asarray(gp.learned(), u.dtype)
        change = jnp.max(jnp.abs(free - state.climb.point), initial=0.0)
        found = Iteration(mean, variance, state.values, precision, elbo, change, beta, shift)
        new = self._put(state, s, found)
        return eqx.tree_at(
            lambda n: (n.climb, n.num_steps), new, (state.climb.told(elbo, gradient), state.num_steps + 1)
        )

    def merit(self, infos: DoubleKLInfo) -> dict[str, Array]:
        """The last ELBO."""
        return {"elbo": jnp.asarray(infos.elbo)[..., -1].max()}

    def alarm(self, infos: DoubleKLInfo) -> str | None:
        """What to say where the ELBO is not finite."""
        if np.isfinite(np.asarray(infos.elbo)).all():
            return None
        return (
            "The ELBO of DoubleKL is not finite: a covariance of neighbours is not positive definite, or a factor "
            "broke down; raise the nugget, lower rho, or look for inputs that nearly coincide."
        )

    @staticmethod
    def _put(state: DoubleKLState, s: Structure, found: Iteration) -> DoubleKLState:
        back = lambda x: jnp.zeros_like(x).at[s.order].set(x)  # noqa: E731
        where = lambda n: (  # noqa: E731
            n.mean, n.variance, n.values, n.precision, n.elbo, n.change, n.step_size, n.shift,
        )  # fmt: skip
        there = (back(found.mean), back(found.variance), found.values, back(found.precision))
        return eqx.tree_at(where, state, (*there, found.elbo, found.change, found.step_size, found.shift))

    def _scales(self) -> Float[Array, " d"]:
        if self.scales is None:
            raise NotAvailable(f"DoubleKL has no order yet (phase {self.phase}); run it with fit.")
        return self.scales

    def _structure(self) -> Structure:
        if self.pattern is None:
            raise NotAvailable(f"DoubleKL has no pattern yet (phase {self.phase}); run it with fit.")
        return self.pattern


def drift(old: Any, new: Any) -> float:
    """Largest change of a log length scale."""
    return float(np.max(np.abs(np.log(np.asarray(new) / np.asarray(old)))))
