"""Learning with a sparse factor of the prior's precision: what `DoubleKL` and `VecchiaLaplace` share.

Hyper-parameters maximise the ELBO: its gradient at the optimal q is the gradient of the ELBO with q held fixed, of
which everything is exact but tr(Uᵀ Σ U), by probes z of random signs on points that are far apart (`pattern.colours`):
∂ ½ zᵀ Uᵀ Σ U z = (Σ U z)ᵀ ∂(U z), two solves in O(n m) each. The probes stay the same over a stage, so that BFGS climbs
a smooth function of the hyper-parameters' logarithms (`climb`).

Laplace's approximation, Σ log p(y_i | f_i) − ½ |Uᵀ (f − μ)|² + Σ log U_ii − ½ log det P at the mode f, has the same
trace in its gradient, − ½ Σ v_i ∂λ_i for parameters of the likelihood, and, since λ depends on the mode and the mode on
all parameters, wᵀ ∂(∂ log p − U Uᵀ (f − μ)) with w = P⁻¹ (− ½ v ∘ ∂λ / ∂f): one more solve.

With ``learn="observations"``, under Gaussian noise, they maximise the evidence of y by a factor of its own covariance
(`evidence`), from few nearest observations and then from more: no q is needed, and the sparse prior of the process
biases nothing.

Order and pattern are found on the host between stages, for the length scales reached: "order 1" and "order 2" learn,
"posterior" brings q to its fixed point. Where no length scale has moved by a fifth, the last order serves on: another
one has another sparse prior, whose evidence has its maximum elsewhere.

Per step O(n m³) for U and its gradient, O(n m²) for V; per iteration of the last stage O(n a²) for the variances over a
reduced ancestors.
"""

import abc
from typing import Any, ClassVar, Literal, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ...infer.errors import InvalidArgument, NotAvailable
from ...infer.target import Target
from ...infer.validate import check_choice, check_count
from ...infer.variational.sparse_cholesky.factor import (
    Structure,
    backward,
    conjugate_gradients,
    forward,
    incomplete_cholesky,
    times,
    times_transpose,
)
from .climb import Climb
from .evidence import log_evidence
from .fixed_point import (
    Iteration,
    Problem,
    Rule,
    diagonal_factor,
    iterate,
    move_mean,
    posterior_precision,
    sites,
)
from .latent import LatentGP
from .learning import INNER, AbstractLatentMethod, process_reached, unbounded
from .likelihoods import Gaussian
from .pattern import Extent, build_pattern, colours, make_problem, nearest_observations
from .sparse_posterior import SparsePosterior

SPARSE = (
    "Sparse prior, point estimates: the process is that of a sparse factor of its prior's precision, and intervals "
    "leave out what is not known of the hyper-parameters."
)
CAUSE = (
    "a covariance of neighbours is not positive definite, or a factor broke down; raise the nugget, lower rho, or look "
    "for inputs that nearly coincide."
)
NEIGHBORS_OF_Y = (10, 20)
"""Of ``learn="observations"``: how many nearest earlier ones each is given, under the first and second order."""
MOVED = 0.2
"""Change of a log length scale up to which an order and its pattern serve on."""


class SparseState(eqx.Module):
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


class SparseInfo(NamedTuple):
    """What is known of a step."""

    elbo: Array
    change: Array
    step_size: Array
    shift: Array
    num_evaluations: Array


class AbstractSparse(AbstractLatentMethod):
    """Base of the methods with a sparse factor of the prior's precision.

    Attributes
    ----------
    rule
        How q is chosen, see `fixed_point`.
    """

    rho: eqx.AbstractVar[float | Literal["auto"] | None]
    neighbors: eqx.AbstractVar[int | None]
    num_probes: eqx.AbstractVar[int]
    pattern: eqx.AbstractVar[Structure | None]
    colours: eqx.AbstractVar[Int[Array, " n"] | None]
    scales: eqx.AbstractVar[Float[Array, " d"] | None]

    learning: ClassVar[tuple[str, ...]] = ("order 1", "order 2")

    def __check_init__(self) -> None:
        self.extent().check()
        check_choice("learn", self.learn, (True, False, "observations"))
        check_count("num_probes", self.num_probes)

    @property
    @abc.abstractmethod
    def rule(self) -> Rule:
        """How q is chosen."""

    # -- host ---------------------------------------------------------------------------------------------------------

    def prepare(self, key: PRNGKeyArray, target: Target, start: Any) -> "AbstractSparse":
        """Order and pattern for the length scales reached."""
        del key
        gp = process_reached(self, target, start)
        scales = np.asarray(gp.kernel.scales(gp.X.shape[1]))
        if isinstance(start[0], SparseState):
            last = np.reshape(np.asarray(start[0].scales), (-1, len(scales)))[0]
            scales = last if drift(last, scales) <= MOVED else scales
        of_y = not self.last and self.learn == "observations"
        if of_y and not isinstance(gp.likelihood, Gaussian):
            name = type(gp.likelihood).__name__
            raise InvalidArgument(f'learn="observations" takes a Gaussian likelihood, got {name}; use learn=True.')
        found = np.zeros(gp.dim, np.int32)  # of the probes, which learning by the ELBO alone has
        if of_y:
            few, more = NEIGHBORS_OF_Y
            first = self.phase == 0
            structure = nearest_observations(gp, scales, few if first else more, None if first else self.extent())
        else:
            structure = build_pattern(gp, self.extent(), scales, nearer=self.rule == "laplace")
            if not self.last:
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

    def result(self, state: SparseState, target: Target) -> SparsePosterior:
        """Q and the learned hyper-parameters."""
        state = jax.tree.map(lambda x: jnp.asarray(x[0]), state)
        gp = cast("LatentGP", target).with_free(state.climb.point).with_structure(self._structure())
        return SparsePosterior(
            gp, state.mean, state.values, state.variance, state.elbo, *self.extent(), self.rule
        )  # fmt: skip

    def remarks(self, state: SparseState, target: Target, result: Any) -> list[dict[str, Any]]:
        """Whether the fixed point was reached and the pattern fits the length scales."""
        state = jax.tree.map(lambda x: np.asarray(x[0]), state)
        found = [self.standstill(float(state.change))]
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

    def init(self, key: PRNGKeyArray, target: Target, start: Any) -> SparseState:
        """The likelihood's start, or where the last stage ended."""
        del key
        gp = cast("LatentGP", target)
        nothing = jnp.zeros(self._structure().columns.shape)
        if isinstance(start, SparseState):
            zero = jnp.zeros((), jnp.int32)
            new = (start.climb.anew(), zero, nothing, self._scales())
            return eqx.tree_at(lambda s: (s.climb, s.num_steps, s.values, s.scales), start, new)
        y = jnp.asarray(gp.y, float)
        zero = jnp.zeros((), y.dtype)
        return SparseState(
            Climb.at(gp.free()), gp.likelihood.start(y), jnp.zeros_like(y), jnp.ones_like(y), nothing,
            self._scales(), -jnp.inf + zero, jnp.zeros((), jnp.int32), jnp.inf + zero, zero, zero,
        )  # fmt: skip

    def step(self, key: PRNGKeyArray, state: SparseState, target: Target, t: Array) -> tuple[SparseState, SparseInfo]:
        """One step of learning, or one iteration of the fixed point."""
        del key, t
        gp = cast("LatentGP", target)
        learn = self._learn_from_y if self.learn == "observations" else self._learn
        new = self._iterate(state, gp) if self.last else learn(state, gp)
        evaluations = jnp.ones((), jnp.int32)
        return new, SparseInfo(new.elbo, new.change, new.step_size, new.shift, evaluations)

    def _iterate(self, state: SparseState, gp: LatentGP) -> SparseState:
        """One iteration of the fixed point, see `fixed_point`; everything in maximin order inside."""
        s = self._structure()
        gp = gp.with_free(state.climb.point)
        problem = make_problem(gp, s, gp.columns(s), self.rule)
        return self._put(state, s, iterate(problem, state.mean[s.order], state.variance[s.order], self.rule))

    def _learn_from_y(self, state: SparseState, gp: LatentGP) -> SparseState:
        """The evidence and its gradient at the hyper-parameters asked for; q waits."""
        s, free = self._structure(), state.climb.asked()
        value, gradient = jax.value_and_grad(lambda free: log_evidence(gp.with_free(free), s))(free)
        change = jnp.max(jnp.abs(free - state.climb.point), initial=0.0)
        climb = state.climb.told(value, gradient * jnp.asarray(gp.learned(), free.dtype))
        new = (climb, state.num_steps + 1, value, change)
        return eqx.tree_at(lambda n: (n.climb, n.num_steps, n.elbo, n.change), state, new)

    def _learn(self, state: SparseState, gp: LatentGP) -> SparseState:
        """The best q at the hyper-parameters asked for, and the ELBO and its gradient there."""
        s, free = self._structure(), state.climb.asked()
        key_trace, key_draw = jax.random.split(jax.random.key(self.phase))

        def prior(free: Array) -> tuple[Array, Array]:
            here = gp.with_free(free)
            return here.columns(s), here.mean.at(jnp.asarray(gp.X))[s.order]

        (u, _), pull = jax.vjp(prior, free)
        problem = make_problem(gp.with_free(free), s, u, self.rule)
        normal = jax.random.normal(key_draw, (self.num_probes, gp.dim), u.dtype)

        def improve(carry: tuple, _: None) -> tuple[tuple, tuple]:
            mean, variance = carry
            precision = sites(problem.likelihood.expected(mean, variance, problem.y))
            p = posterior_precision(problem, precision)
            full, shift = incomplete_cholesky(s, p)
            v = diagonal_factor(p) if self.rule == "mean_field" else full
            variance = jnp.mean(jax.vmap(lambda e: forward(s, v, e))(normal) ** 2, 0)
            if self.rule == "mean_field":
                variance = 1 / p[:, -1]
            moved, beta = move_mean(problem, full, precision, mean, variance, 1e-6)
            return (moved, variance), (v, full, precision, beta, shift)

        rounds = 1 if isinstance(problem.likelihood, Gaussian) else INNER
        first = (state.mean[s.order], state.variance[s.order])
        (mean, variance), found = jax.lax.scan(improve, first, None, rounds)
        v, full, precision, beta, shift = jax.tree.map(lambda x: x[-1], found)

        sign = jax.random.rademacher(key_trace, (gp.dim,), u.dtype)
        probes = jnp.zeros((self.num_probes, gp.dim), u.dtype).at[self.colours, jnp.arange(gp.dim)].set(sign)
        image = jax.vmap(lambda z: times(s, u, z))(probes)
        solved = jax.vmap(lambda w: forward(s, v, backward(s, v, w)))(image)  # Σ U z
        pull_mode = self._adjoint(problem, full, mean, variance) if self.rule == "laplace" else None

        def objective(u: Array, mu: Array, free: Array) -> tuple[Array, Array]:
            white = times_transpose(s, u, mean - mu)
            trace = jnp.sum(solved * jax.vmap(lambda z: times(s, u, z))(probes))
            here = make_problem(gp.with_free(free), s, u, self.rule)
            expected = here.likelihood.expected(mean, variance, problem.y)
            value = jnp.sum(expected.value) - 0.5 * jnp.sum(white**2) + jnp.sum(jnp.log(u[:, -1]))
            along = value - trace
            if pull_mode is not None:
                along = along - 0.5 * jnp.vdot(variance, sites(expected))
                along = along + jnp.vdot(pull_mode, expected.gradient - times(s, u, white))
            return along, value

        (_, value), (along_u, along_mu, along_free) = jax.value_and_grad(objective, (0, 1, 2), has_aux=True)(
            u, problem.mu, free
        )
        elbo = value - jnp.sum(jnp.log(v[:, -1]))
        if self.rule != "laplace":
            elbo = elbo + 0.5 * (gp.dim - jnp.sum(solved * image))
        gradient = (pull((along_u, along_mu))[0] + along_free) * jnp.asarray(gp.learned(), u.dtype)
        change = jnp.max(jnp.abs(free - state.climb.point), initial=0.0)
        found = Iteration(mean, variance, state.values, precision, elbo, change, beta, shift)
        new = self._put(state, s, found)
        return eqx.tree_at(
            lambda n: (n.climb, n.num_steps), new, (state.climb.told(elbo, gradient), state.num_steps + 1)
        )

    @staticmethod
    def _adjoint(
        problem: Problem, v: Float[Array, "n m"], mode: Float[Array, " n"], variance: Float[Array, " n"]
    ) -> Float[Array, " n"]:
        """P⁻¹ ∂(− ½ log det P) / ∂f: what a move of the mode does to the value, by its equation."""
        s = problem.structure
        curvature = lambda f: sites(problem.likelihood.expected(f, variance, problem.y))  # noqa: E731
        precision, slope = jax.jvp(curvature, (mode,), (jnp.ones_like(mode),))
        return conjugate_gradients(
            lambda x: problem.prior_precision(x) + precision * x,
            lambda x: forward(s, v, backward(s, v, x)),
            -0.5 * variance * slope,
            jnp.zeros_like(mode),
            tolerance=1e-6,
        )[0]

    def alarm(self, infos: SparseInfo) -> str | None:
        """What to say where the ELBO is not finite."""
        return unbounded(self, infos, CAUSE)

    @staticmethod
    def _put(state: SparseState, s: Structure, found: Iteration) -> SparseState:
        back = lambda x: jnp.zeros_like(x).at[s.order].set(x)  # noqa: E731
        where = lambda n: (  # noqa: E731
            n.mean, n.variance, n.values, n.precision, n.elbo, n.change, n.step_size, n.shift,
        )  # fmt: skip
        there = (back(found.mean), back(found.variance), found.values, back(found.precision))
        return eqx.tree_at(where, state, (*there, found.elbo, found.change, found.step_size, found.shift))

    def _scales(self) -> Float[Array, " d"]:
        if self.scales is None:
            raise NotAvailable(f"{type(self).__name__} has no order yet (phase {self.phase}); run it with fit.")
        return self.scales

    def _structure(self) -> Structure:
        if self.pattern is None:
            raise NotAvailable(f"{type(self).__name__} has no pattern yet (phase {self.phase}); run it with fit.")
        return self.pattern


def drift(old: Any, new: Any) -> float:
    """Largest change of a log length scale."""
    return float(np.max(np.abs(np.log(np.asarray(new) / np.asarray(old)))))
