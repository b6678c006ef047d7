"""`DoubleKL` and `VecchiaLaplace`: latent Gaussian processes with sparse inverse Cholesky factors.

Prior and posterior of the process at the data get sparse Cholesky factors of their *precisions*, each the closest in a
Kullback–Leibler divergence ([1]_), or, for the posterior, by its curvature at the mode ([2]_).

Differs from the released code of [1]_: natural gradients instead of Adam on (ν, V), quasi-Newton steps instead of Adam
on hyper-parameters, quadrature instead of 5,000 draws, all columns in each step.

References
----------
.. [1] J. Cao et al. (2023). ICML. arXiv:2301.13303.
.. [2] D. Zilber, M. Katzfuss (2021). Computational Statistics & Data Analysis 153.
"""

from typing import ClassVar, Literal

import equinox as eqx
from jaxtyping import Array, Float, Int

from ...infer.variational.sparse_cholesky.factor import Structure
from .fixed_point import Rule
from .sparse import SPARSE, AbstractSparse


class DoubleKL(AbstractSparse):
    """Variational inference with sparse inverse Cholesky factors, for a `pushforward.models.LatentGP`.

    Parameters
    ----------
    rho
        Radius of the pattern in units of each point's maximin distance; larger is more accurate and costs more. By
        default 2 for up to three inputs; for more, 20 ``neighbors``. "auto": the least of 1.5, 2, …, 8 from which the
        next one would bring the sparse prior nearer to the process's by less than 0.01 nats per observation.
    neighbors
        Instead of ``rho``: each column has this many nearest earlier points.
    learn
        Whether hyper-parameters are learned, by the ELBO; else they stay those of the target. "observations", under
        `Gaussian` noise: by the evidence of y, each observation given its 20 nearest earlier ones, or as many as the
        pattern has where those are more. That is faster and does not make length scales too short; but it looks only
        at what is near, and where a trend runs over all the data the ELBO predicts better (or give a linear mean).
    num_steps
        Evaluations of the evidence or the ELBO, and its gradient, under each order at most.
    gain
        Nats that a further step must promise for learning to go on.
    num_probes
        Random vectors for the ELBO's trace and the variances. 32 move hyper-parameters by 0.03 to 0.2 of what the data
        leave open, most where observations say little.
    max_iterations
        Of the fixed point in the end.
    tolerance
        Largest change of a mean, in standard deviations, at which that stops.
    mean_field
        Whether q has independent values, on the same prior ("DKL-D" in the paper): means stay the same, variances are
        those of each value given all others, too small where the posterior is correlated.
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
    learn: bool | Literal["observations"] = eqx.field(static=True, default=True)
    num_steps: int = eqx.field(static=True, default=40)
    gain: float = 0.01
    num_probes: int = eqx.field(static=True, default=32)
    max_iterations: int = eqx.field(static=True, default=50)
    tolerance: float = 1e-4
    mean_field: bool = eqx.field(static=True, default=False)
    allow_float32: bool = eqx.field(static=True, default=False)
    phase: int = eqx.field(static=True, default=0)
    pattern: Structure | None = None
    colours: Int[Array, " n"] | None = None
    scales: Float[Array, " d"] | None = None

    warning: ClassVar[str] = SPARSE
    source: ClassVar[str] = "Cao et al. 2023"

    @property
    def rule(self) -> Rule:
        """See `fixed_point`."""
        return "mean_field" if self.mean_field else "kl"


class VecchiaLaplace(AbstractSparse):
    """Laplace's approximation on the sparse prior of `DoubleKL` (Vecchia's), for a `pushforward.models.LatentGP`.

    Means are the posterior's mode, precisions those of its curvature there. The evidence that hyper-parameters
    maximise, and that the result has in place of an ELBO, is Laplace's approximation of the sparse prior's, with the
    determinant of the incomplete factor: no bound. Under Gaussian noise it is `DoubleKL`.

    Parameters
    ----------
    rho, neighbors
        The pattern, as of `DoubleKL`; neighbours in maximin order or, of more than two inputs, in a random one,
        whichever brings the sparse prior nearer to the process's.
    learn, num_steps, gain, num_probes, max_iterations, tolerance, allow_float32
        As of `DoubleKL`.

    Raises
    ------
    InvalidArgument
        A setting is out of range, or the run is in 32 bits.
    NonFinite
        A covariance of neighbours is not positive definite.

    References
    ----------
    Zilber & Katzfuss (2021), Computational Statistics & Data Analysis 153.
    """

    rho: float | Literal["auto"] | None = eqx.field(static=True, default=None)
    neighbors: int | None = eqx.field(static=True, default=None)
    learn: bool | Literal["observations"] = eqx.field(static=True, default=True)
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

    warning: ClassVar[str] = (
        "Sparse prior, Laplace, point estimates: the process is that of a sparse factor of its prior's precision, "
        "means are a mode, and intervals leave out what is not known of the hyper-parameters."
    )
    source: ClassVar[str] = "Zilber & Katzfuss 2021"

    @property
    def rule(self) -> Rule:
        """See `fixed_point`."""
        return "laplace"
