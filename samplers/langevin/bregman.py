"""Bregman proximal Langevin Monte Carlo: the nonsmooth part by a Bregman–Moreau envelope, the step in a mirror's dual.

For π ∝ exp(−f − g), with g nonsmooth and convex, φ the mirror and ψ that of the envelope,

    y⁺ = y − γ (∇f(x) + ∇env_λ^ψ g(x)) + √(2γ) ξ,   ξ ~ N(0, ∇²φ(x)),   x⁺ = ∇φ*(y⁺)

(LBMUMLA and RBMUMLA, for the left and the right envelope). With φ and ψ Euclidean this is MYULA. The Metropolis test
uses the true g: the adjusted chain samples π itself, whatever the envelope.

References
----------
.. [1] T. T.-K. Lau, H. Liu (2022). Bregman proximal Langevin Monte Carlo via Bregman–Moreau envelopes. ICML.
   arXiv:2207.04387.
.. [2] A. Durmus, É. Moulines, M. Pereyra (2018). Efficient Bayesian computation by proximal Markov chain Monte Carlo.
   SIAM J. Imaging Sciences 11(1). (MYULA; MYMALA.)
"""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.core
import numpy as np
from jaxtyping import Array

from ...infer.errors import InvalidArgument, UnsupportedTarget
from ...infer.geometry import Affine, Batch, Euclidean, HyperbolicEntropy, PowerMirror, Product
from ...infer.geometry.envelope import Envelope
from ...infer.geometry.mirror import AbstractMirror, Point
from ...infer.target import Target
from ...infer.target.primal import Primal, primal
from ...infer.validate import check_choice
from ..mirrors import Relative, as_mirror, resolve_mirror
from .checks import check_envelope_domain, check_euclidean_step, describe_convexity, describe_tails
from .common import AbstractLangevin, LangevinState, Local, Noise, Proposal, log_probs, value_and_drift, value_of_term
from .mirrored import mirror_proposal
from .slope import default_smoothing


class BregmanProximalLangevin(AbstractLangevin):
    """Bregman proximal Langevin Monte Carlo for a smooth plus a nonsmooth part; Metropolis-adjusted by default.

    Parameters
    ----------
    step_size
        γ. Of an adjusted sampler the first one of the warm-up, or the one used where there is no warm-up; default 0.1.
        An unadjusted one uses it as it is, without a scale; by default a tenth of the step that the test would allow,
        at most 0.02 where a site is constrained.
    adjusted
        Whether proposals are tested, with the true g. Without the test the draws have three biases: of the step, of the
        envelope, and of the slope of its tails.
    target_acceptance
        Mean acceptance statistic that warm-up drives γ to, in (0, 1); default 0.574, and 0.5 where a site is
        constrained (0.4 where a density is infinite at an edge). The warm-up of an unadjusted sampler tests too.
    scale
        Scale per coordinate of real sites, a number or an array of shape (d,): the mirror acts on x / scale. Default:
        standard deviations learned in warm-up.
    bias_check
        Whether an unadjusted sampler spends half the warm-up's length on estimating its bias from half the step.
    mirror
        φ: None (Euclidean at real sites, else the mirror of the support: its entropy, or without the test its barrier),
        ``"hyperbolic"`` (hyperbolic entropy of scale ``scale``, for sparse and badly scaled targets), a mirror map, or
        a dict of sites → mirror maps.
    envelope
        ψ: None (Euclidean, the Moreau envelope), ``"hyperbolic"`` (hyperbolic entropy with β = 0.7/α), or a mirror map.
    smoothing
        λ, a number or an array of shape (d,). Default: from the weights α of g, 0.1/α² for the Euclidean envelope, else
        0.1/α.
    side
        ``"left"`` or ``"right"`` envelope; the same for the Euclidean one.

    Raises
    ------
    UnsupportedTarget
        The target has no nonsmooth part, or an unadjusted sampler has a mirror whose dual is not all of R^d.

    References
    ----------
    Lau & Liu (2022), Bregman Proximal Langevin Monte Carlo via Bregman–Moreau Envelopes, ICML; Srinivasan, Wibisono &
    Wilson (2024), arXiv:2312.08823 (the test).
    """

    mirror: Any = eqx.field(default=None, converter=as_mirror)
    envelope: Any = eqx.field(default=None, converter=lambda given: _as_envelope(given))
    smoothing: Any = None
    side: str = eqx.field(static=True, default="left")

    requires: ClassVar = ("support", "composite")
    source: ClassVar[str] = "Lau & Liu 2022"

    def __check_init__(self) -> None:
        check_choice("side", self.side, ("left", "right"))
        if self.smoothing is not None and not isinstance(self.smoothing, jax.core.Tracer):
            least = np.min(np.asarray(self.smoothing))
            if not least > 0:
                raise InvalidArgument(f"smoothing must be > 0, got {least:g}; a small one is near the term itself.")

    def mirror_for(self, target: Primal, scale: Array) -> AbstractMirror:
        """The mirror of the step."""
        mirror = resolve_mirror(self.mirror, target, scale, barrier=not self.adjusted)
        check_dual(self, mirror)
        return mirror

    def locate(self, target: Primal, mirror: AbstractMirror, point: Point) -> Local:
        """Log π, and G = ∇f + ∇env."""
        smooth, drift = value_and_drift(target.smooth_log_density, point.x, log_probs(target, mirror, point))
        envelope = self.envelope_of(target.nonsmooth)
        drift = drift + envelope.grad(envelope.at(point.x))
        term = target.nonsmooth.value(point.x)
        return Local(point, smooth - term, drift, term)

    def propose(self, target: Primal, mirror: AbstractMirror, noise: Noise, local: Local, step: Array) -> Proposal:
        """A mirror Langevin step along G."""
        return mirror_proposal(lambda p: self.locate(target, mirror, p), mirror, noise, local, step)

    def check_step(self, target: Primal, x: Any) -> None:
        """The envelope must cover the supports, and an unadjusted Euclidean step be below 2/(L + 1/λ)."""
        envelope = self.envelope_of(target.nonsmooth)
        check_envelope_domain(envelope.mirror, target, x)
        if np.shape(envelope.smoothing) not in ((), (x.shape[0],)):
            raise InvalidArgument(
                f"smoothing has shape {np.shape(envelope.smoothing)}; give a number, or one per coordinate, "
                f"({x.shape[0]},)."
            )
        if isinstance(envelope.mirror, Euclidean):
            weights = np.asarray(getattr(target.nonsmooth, "weights", 1.0))
            matters = weights > 0 if np.shape(weights) == np.shape(envelope.smoothing) else True
            check_euclidean_step(self, target, x, np.where(matters, 1.0 / np.asarray(envelope.smoothing), 0.0))

    def remarks(self, state: LangevinState, target: Target, result: Any) -> list[dict[str, Any]]:
        """The bias of the step, and that of the envelope's tails."""
        found = primal(target)
        return [
            *super().remarks(state, target, result),
            *([] if self.adjusted else describe_tails(self.envelope_of(found.nonsmooth))),
            *describe_convexity(found.nonsmooth, found.coordinates.to_x(target.initial(jax.random.key(0)))),
        ]

    def envelope_of(self, term: Any) -> Envelope:
        """The envelope of the target's nonsmooth term."""
        psi = self.envelope
        if isinstance(psi, Relative):
            psi = HyperbolicEntropy(7.0 * default_smoothing(term, True))  # β = 0.7/α
        smoothing = self.smoothing
        if smoothing is None:
            smoothing = default_smoothing(term, not isinstance(psi, Euclidean))
        return Envelope(term, smoothing, psi, self.side)


class MirrorLangevin(AbstractLangevin):
    """The mirror Langevin algorithm (MLA), Metropolis-adjusted by default (MAMLA), for constrained and heavy targets.

    y⁺ = y + γ ∇log π(x) + √(2γ) ξ, ξ ~ N(0, ∇²φ(x)), x⁺ = ∇φ*(y⁺): the step is taken in the dual, from which every
    point leads back into the constraint. At kinks of log π a subgradient serves.

    Parameters
    ----------
    step_size, adjusted, target_acceptance, scale, bias_check, mirror
        As in `BregmanProximalLangevin`.

    Raises
    ------
    UnsupportedTarget
        The supports of the target are not known, or an unadjusted sampler has a mirror whose dual is not all of R^d.

    References
    ----------
    Zhang, Peyré, Fadili & Pereyra (2020), Wasserstein Control of Mirror Langevin Monte Carlo, COLT; Srinivasan,
    Wibisono & Wilson (2024), arXiv:2312.08823.
    """

    mirror: Any = eqx.field(default=None, converter=as_mirror)

    source: ClassVar[str] = "Zhang et al. 2020; Srinivasan et al. 2024"

    def mirror_for(self, target: Primal, scale: Array) -> AbstractMirror:
        """The mirror of the step."""
        mirror = resolve_mirror(self.mirror, target, scale, barrier=not self.adjusted)
        check_dual(self, mirror)
        return mirror

    def locate(self, target: Primal, mirror: AbstractMirror, point: Point) -> Local:
        """Log π and minus its gradient."""
        value, drift = value_and_drift(target.log_density, point.x, log_probs(target, mirror, point))
        return Local(point, value, drift, value_of_term(target, point.x))

    def check_step(self, target: Primal, x: Any) -> None:
        """In the Euclidean geometry an unadjusted step must be below 2/L."""
        check_euclidean_step(self, target, x)

    def propose(self, target: Primal, mirror: AbstractMirror, noise: Noise, local: Local, step: Array) -> Proposal:
        """A mirror Langevin step."""
        return mirror_proposal(lambda p: self.locate(target, mirror, p), mirror, noise, local, step)


def _as_envelope(given: Any) -> Any:
    if given is None:
        return Euclidean()
    if isinstance(given, str) and given == "hyperbolic":
        return Relative(HyperbolicEntropy(0.7))
    if isinstance(given, AbstractMirror | Relative):
        return given
    raise InvalidArgument(
        f"envelope must be None, 'hyperbolic' or a mirror map such as HyperbolicEntropy(0.7), got {given!r}."
    )


def _power(mirror: AbstractMirror) -> float | None:
    """The exponent other than 2 of a power among the parts of a mirror."""
    if isinstance(mirror, PowerMirror):
        return None if mirror.p == 2 else mirror.p
    one = [mirror.mirror] if isinstance(mirror, Affine | Batch) else []
    parts = mirror.parts if isinstance(mirror, Product) else one
    return next((p for p in map(_power, parts) if p is not None), None)


def check_dual(method: AbstractLangevin, mirror: AbstractMirror) -> None:
    """A step in the dual must lead back: all duals must have a primal, unless steps can be rejected."""
    name = type(mirror).__name__
    power = _power(mirror)
    if power is not None and not method.adjusted:
        raise UnsupportedTarget(
            f"PowerMirror({power:g}) has a second derivative of 0 or infinity at 0, where an unadjusted step is not "
            f"defined; use adjusted=True."
        )
    if not mirror.invertible:
        raise UnsupportedTarget(f"{name} has no inverse mirror map, which {type(method).__name__} needs; use MAPLA().")
    if not method.adjusted and not mirror.full_dual:
        raise UnsupportedTarget(
            f"{name} has points of R^d that are no duals, so that an unadjusted step may lead nowhere; use "
            f"adjusted=True, or a mirror whose dual is all of R^d, such as BoltzmannShannon()."
        )
