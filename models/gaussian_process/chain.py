"""The prior of a process of one input as a Markov chain (`markov`): exact, in time and memory linear in n.

With sites (r, λ) of g = hᵀ s, the step to a time from the one before is an element (A, b, C, η, J): given the state s
before, the state is N(A s + b, C), and the site's likelihood is proportional to N(s; ·) in information form, η and J
([1]_). With q = Q h and S = 1 + λ hᵀ q:

A ← A − λ q hᵀA / S,  b = r q / S,  C = Q − λ q qᵀ / S,  η = r Aᵀh / S,  J = λ Aᵀh hᵀA / S

Elements combine associatively (`combine`). All those up to a time give the filtered N(b, C), all those after it the
likelihood η, J of its state, and both together the smoothed law, (I + C J)⁻¹ (b + C η) and (I + C J)⁻¹ C: no predicted
covariance, which may be singular, is ever inverted. A new input, or an observation that is missing, has r = λ = 0.

One after the other, 2 n steps of O(D³); as two associative scans O(log n) rounds of n combinations, for accelerators.
Draws are a draw of the chain moved by the posterior mean of what it missed ([2]_).

References
----------
.. [1] A. Corenflos, Z. Zhao, S. Särkkä (2022). Temporal Gaussian process regression in logarithmic time. FUSION.
   arXiv:2102.09964.
.. [2] J. Durbin, S. J. Koopman (2002). A simple and efficient simulation smoother. Biometrika 89.
"""

from typing import TYPE_CHECKING, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .dense import with_slopes
from .markov import Markov
from .sites import AbstractForm, Conditioned, Sites, nuggets, posterior_density

if TYPE_CHECKING:
    from .latent import LatentGP


DRAW_BYTES = 64 * 2**20
"""For as many draws together as keep a D × D matrix for each time and draw within it."""


class Element(NamedTuple):
    """Steps from one time to another, see the module; leaves may have leading axes."""

    a: Array
    b: Array
    c: Array
    eta: Array
    j: Array


class Smoothed(NamedTuple):
    """Moments of g at each time, shape (n,), and log ∫ p ∏ t_i."""

    mean: Float[Array, " n"]
    variance: Float[Array, " n"]
    evidence: Float[Array, ""]


class Chain(AbstractForm):
    """A Markov chain along the one input.

    Parameters
    ----------
    parallel
        Whether times are combined by associative scans, for accelerators, instead of one after the other.
    """

    parallel: bool = eqx.field(static=True, default=False)

    def condition(self, gp: "LatentGP", sites: Sites) -> Conditioned:
        """See `AbstractForm`."""
        found = self._smooth(gp, jnp.asarray(gp.X), sites)
        return Conditioned(found.mean, found.variance, jnp.zeros_like(found.mean), found.evidence)

    def draw(self, gp: "LatentGP", sites: Sites, key: PRNGKeyArray, n: int) -> Float[Array, "k n"]:
        """See `AbstractForm`."""
        return self._draw(gp, jnp.asarray(gp.X), sites, key, n)

    def predict(self, gp: "LatentGP", sites: Sites, x: Float[Array, "k d"], *, gradients: bool) -> tuple[Array, ...]:
        """See `AbstractForm`."""

        def moments(x: Array) -> tuple[Array, Array]:
            found = self._smooth(gp, *_with_new(gp, sites, x))
            return found.mean[gp.dim :], found.variance[gp.dim :]

        return with_slopes(moments, x, gradients=gradients)

    def draw_at(
        self, gp: "LatentGP", sites: Sites, x: Float[Array, "k d"], key: PRNGKeyArray, n: int
    ) -> Float[Array, "s k"]:
        """See `AbstractForm`."""
        return self._draw(gp, *_with_new(gp, sites, x), key, n)[:, gp.dim :]

    def log_density(self, gp: "LatentGP", given: Sites, f: Float[Array, " n"]) -> Float[Array, ""]:
        """See `AbstractForm`."""
        return posterior_density(gp, self, given, f, self.log_prior(gp, f))

    def log_prior(self, gp: "LatentGP", f: Float[Array, " n"]) -> Float[Array, ""]:
        """Log density of f, nugget included, at the data."""
        x = jnp.asarray(gp.X)
        order = jnp.argsort(x[:, 0])
        step, noise, read = _transitions(gp.kernel.markov(x[order, 0]))
        above, t = (f - gp.mean.at(x))[order], nuggets(gp, x)[order]

        def filtered(carry: tuple, now: tuple) -> tuple[tuple, Array]:
            (m, p), (a, q, h, y, t) = carry, now
            m, p = a @ m, a @ p @ a.T + q
            s, miss = h @ p @ h + t, y - h @ m
            gain = p @ h / s
            return (m + gain * miss, p - s * jnp.outer(gain, gain)), -0.5 * (jnp.log(2 * jnp.pi * s) + miss**2 / s)

        start = (jnp.zeros_like(read[0]), jnp.zeros_like(noise[0]))
        return jnp.sum(jax.lax.scan(filtered, start, (step, noise, read, above, t))[1])

    def _smooth(self, gp: "LatentGP", x: Float[Array, "n d"], sites: Sites) -> Smoothed:
        """Moments of g − μ at inputs in any order."""
        order = jnp.argsort(x[:, 0])
        found = smooth(gp.kernel.markov(x[order, 0]), Sites(*(part[order] for part in sites)), parallel=self.parallel)
        back = lambda z: jnp.zeros_like(z).at[order].set(z)  # noqa: E731
        return Smoothed(back(found.mean), back(found.variance), found.evidence)

    def _draw(self, gp: "LatentGP", x: Float[Array, "n d"], sites: Sites, key: PRNGKeyArray, n: int) -> Array:
        order = jnp.argsort(x[:, 0])
        chain = gp.kernel.markov(x[order, 0])
        given = Sites(*(part[order] for part in sites))
        step, noise, read = _transitions(chain)
        values, vectors = jnp.linalg.eigh(noise)
        root = vectors * jnp.sqrt(jnp.maximum(values, 0.0))[:, None, :]

        def one(key: Array) -> Array:
            key_state, key_site = jax.random.split(key)
            z = jax.random.normal(key_state, read.shape, read.dtype)

            def walk(s: Array, now: tuple) -> tuple[Array, Array]:
                a, root, z, h = now
                s = a @ s + root @ z
                return s, h @ s

            g = jax.lax.scan(walk, jnp.zeros_like(read[0]), (step, root, z, read))[1]
            error = jnp.sqrt(given.precision) * jax.random.normal(key_site, g.shape, g.dtype)
            missed = Sites(given.linear - given.precision * g - error, given.precision)
            return jnp.zeros_like(g).at[order].set(g + smooth(chain, missed, parallel=self.parallel).mean)

        size = max(1, min(n, DRAW_BYTES // (8 * noise.size)))
        return jax.lax.map(one, jax.random.split(key, n), batch_size=size)


def smooth(chain: Markov, sites: Sites, *, parallel: bool) -> Smoothed:
    """Moments and evidence of hᵀ s at ascending times, see the module."""
    step, noise, read = _transitions(chain)
    elements = jax.vmap(_element)(step, noise, read, *sites)
    mean, covariance = _before(elements, step, noise, read, sites, parallel=parallel)
    eta, j = _after(elements, parallel=parallel)
    shrink = jnp.linalg.inv(jnp.eye(covariance.shape[-1], dtype=mean.dtype) + covariance @ j)
    smoothed = jnp.einsum("nij,nj->ni", shrink, mean + jnp.einsum("nij,nj->ni", covariance, eta))
    variance = jnp.einsum("ni,nij,njk,nk->n", read, shrink, covariance, read)
    last = jnp.concatenate([jnp.zeros_like(mean[:1]), mean[:-1]])
    spread = jnp.concatenate([jnp.zeros_like(covariance[:1]), covariance[:-1]])
    evidence = jnp.sum(jax.vmap(_evidence)(step, noise, read, *sites, last, spread))
    return Smoothed(jnp.sum(read * smoothed, 1), jnp.maximum(variance, 0.0), evidence)


def combine(one: Element, two: Element) -> Element:
    """Of an earlier element and a later one, the element of both."""
    eye = jnp.eye(one.c.shape[-1], dtype=one.c.dtype)
    forth = two.a @ jnp.linalg.inv(eye + one.c @ two.j)
    a = forth @ one.a
    b = _times(forth, one.b + _times(one.c, two.eta)) + two.b
    c = forth @ one.c @ jnp.swapaxes(two.a, -1, -2) + two.c
    eta, j = _look_back(one, two.eta, two.j)
    return Element(a, b, _symmetric(c), eta, j)


def _look_back(one: Element, eta: Array, j: Array) -> tuple[Array, Array]:
    """The likelihood, of the state before an element, of what follows from there on."""
    eye = jnp.eye(one.c.shape[-1], dtype=one.c.dtype)
    back = jnp.swapaxes(one.a, -1, -2) @ jnp.linalg.inv(eye + j @ one.c)
    return _times(back, eta - _times(j, one.b)) + one.eta, _symmetric(back @ j @ one.a + one.j)


def _element(a: Array, q: Array, h: Array, r: Array, precision: Array) -> Element:
    """Of one step; see the module."""
    gain, seen = q @ h, a.T @ h
    s = 1 + precision * (h @ gain)
    return Element(
        a - precision / s * jnp.outer(gain, seen), r / s * gain, q - precision / s * jnp.outer(gain, gain),
        r / s * seen, precision / s * jnp.outer(seen, seen),
    )  # fmt: skip


def _before(
    elements: Element, step: Array, noise: Array, read: Array, sites: Sites, *, parallel: bool
) -> tuple[Array, Array]:
    """Filtered means and covariances of the state."""
    if parallel:
        found = jax.lax.associative_scan(combine, elements)
        return found.b, found.c

    def filtered(carry: tuple, now: tuple) -> tuple[tuple, tuple]:
        (m, p), (a, q, h, r, precision) = carry, now
        m, p = a @ m, a @ p @ a.T + q
        gain = p @ h
        s = 1 + precision * (h @ gain)
        found = (m + gain * (r - precision * (h @ m)) / s, p - precision / s * jnp.outer(gain, gain))
        return found, found

    start = (jnp.zeros_like(read[0]), jnp.zeros_like(noise[0]))
    return jax.lax.scan(filtered, start, (step, noise, read, *sites))[1]


def _after(elements: Element, *, parallel: bool) -> tuple[Array, Array]:
    """At each time the likelihood, of its state, of all that comes later: η and J."""
    nothing = (jnp.zeros_like(elements.eta[:1]), jnp.zeros_like(elements.j[:1]))
    if parallel:
        found = jax.lax.associative_scan(lambda late, early: combine(early, late), elements, reverse=True)
        return tuple(
            jnp.concatenate([part[1:], none]) for part, none in zip((found.eta, found.j), nothing, strict=True)
        )

    def back(carry: tuple, one: Element) -> tuple[tuple, tuple]:
        return _look_back(one, *carry), carry

    return jax.lax.scan(back, tuple(none[0] for none in nothing), elements, reverse=True)[1]


def _evidence(
    a: Array, q: Array, h: Array, r: Array, precision: Array, m: Array, p: Array
) -> Float[Array, ""]:  # fmt: skip
    """Log E t(hᵀ s) under what is predicted from the filtered state before."""
    mean, variance = h @ a @ m, h @ (a @ p @ a.T + q) @ h
    s = 1 + precision * variance
    return (mean * r + 0.5 * variance * r**2 - 0.5 * precision * mean**2) / s - 0.5 * jnp.log(s)


def _transitions(chain: Markov) -> tuple[Array, Array, Array]:
    """A, Q and h of each time; the first comes from nowhere, with the stationary law as its noise."""
    step = chain.step.at[0].set(0.0)
    return step, chain.law - step @ chain.law @ jnp.swapaxes(step, -1, -2), chain.read


def _with_new(gp: "LatentGP", sites: Sites, x: Float[Array, "k d"]) -> tuple[Array, Sites]:
    """The data's inputs and new ones, which have seen nothing."""
    none = jnp.zeros(len(x), sites.linear.dtype)
    return jnp.concatenate([jnp.asarray(gp.X), x]), Sites(*(jnp.concatenate([part, none]) for part in sites))


def _times(matrix: Array, vector: Array) -> Array:
    return jnp.einsum("...ij,...j->...i", matrix, vector)


def _symmetric(matrix: Array) -> Array:
    return 0.5 * (matrix + jnp.swapaxes(matrix, -1, -2))
