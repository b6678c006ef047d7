"""Covariance functions with learnable parameters, on those of tinygp.

tinygp's kernels are small differentiable pytrees that need nothing but JAX and equinox; GPJax's are as good, but bring
flax, orbax and tensorstore with them. Here they get length scales per input (ARD), a variance, and what an ordering
needs to know: the length scales in which distance is measured.
"""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ...infer.errors import InvalidArgument, UnsupportedTarget
from .markov import Markov, matern

ROUGH, SMOOTH = 1e-6, 1e-4
"""Nuggets, relative to the variance, of kernels that are at most once differentiable, and of smoother ones."""


def as_parameter(value: Any) -> Any:
    """Lists as arrays; everything else as it is."""
    return np.asarray(value, np.float64) if isinstance(value, list | tuple) else value


class Kernel(eqx.Module):
    """A covariance function; kernels add and multiply.

    Attributes
    ----------
    nugget
        Of the latent process, relative to the variance, if the user does not say.
    """

    nugget: eqx.AbstractClassVar[float]

    @abc.abstractmethod
    def matrix(self, x: Float[Array, "n d"], other: Float[Array, "k d"]) -> Float[Array, "n k"]:
        """Covariances between two sets of inputs."""

    @abc.abstractmethod
    def diagonal(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Variances at inputs."""

    @abc.abstractmethod
    def scales(self, num_inputs: int) -> Float[Array, " d"]:
        """Length scale per input (the shortest of those of a sum or product), in which an ordering measures."""

    @abc.abstractmethod
    def check(self, num_inputs: int, where: str = "kernel") -> None:
        """Raise `InvalidArgument` unless the parameters are positive and fit the inputs; on the host."""

    def markov(self, t: Float[Array, " n"]) -> Markov:
        """The Markov chain of a process of one input at ascending times; of Matérn kernels, their sums and products.

        Raises
        ------
        UnsupportedTarget
            The kernel is none of these.
        """
        del t
        raise UnsupportedTarget(
            f"{type(self).__name__} is not the covariance of a Markov chain; use Matern52 in its place, or DenseGP, "
            f"SVGP or DoubleKL."
        )

    def __add__(self, other: "Kernel") -> "Kernel":
        return Sum(self, other)

    def __mul__(self, other: "Kernel") -> "Kernel":
        return Product(self, other)


class AbstractStationary(Kernel):
    """variance × ρ(|(x − x') / lengthscale|), with the correlation ρ of tinygp.

    Attributes
    ----------
    lengthscale
        One for all inputs, or one per input, shape (d,).
    variance
        Of the process.
    profile
        Name of ρ in ``tinygp.kernels.stationary``.
    """

    profile: eqx.AbstractClassVar[str]
    lengthscale: Any = eqx.field(default=1.0, converter=as_parameter)
    variance: Any = 1.0

    def options(self) -> dict[str, Any]:
        """Parameters of ρ besides the length scale."""
        return {}

    def correlation(self) -> Any:
        """Tinygp's kernel of length scale 1, in Euclidean distance."""
        from tinygp.kernels import distance, stationary

        return getattr(stationary, self.profile)(scale=1.0, distance=distance.L2Distance(), **self.options())

    def matrix(self, x: Float[Array, "n d"], other: Float[Array, "k d"]) -> Float[Array, "n k"]:
        """Covariances between two sets of inputs."""
        evaluate = self.correlation().evaluate
        z, w = x / self.lengthscale, other / self.lengthscale
        return self.variance * jax.vmap(lambda a: jax.vmap(lambda b: evaluate(a, b))(w))(z)

    def diagonal(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """The variance."""
        return jnp.broadcast_to(jnp.asarray(self.variance, x.dtype), x.shape[:1])

    def scales(self, num_inputs: int) -> Float[Array, " d"]:
        """The length scales."""
        return jnp.broadcast_to(jnp.asarray(self.lengthscale, float), (num_inputs,))

    def check(self, num_inputs: int, where: str = "kernel") -> None:
        """See `Kernel.check`."""
        for name, value in vars(self).items():
            value = np.asarray(value)
            if value.dtype.kind not in "fiu" or not (np.isfinite(value).all() and (value > 0).all()):
                raise InvalidArgument(f"{name} of {where} must be positive, got {value!r}.")
            if value.shape != () and (name != "lengthscale" or value.shape != (num_inputs,)):
                rule = f"one number, or one per column of X ({num_inputs})" if name == "lengthscale" else "one number"
                raise InvalidArgument(f"{name} of {where} has shape {value.shape}; give {rule}.")


class Matern12(AbstractStationary):
    """exp(−r): rough paths, those of an Ornstein–Uhlenbeck process in one dimension."""

    nugget: ClassVar[float] = ROUGH
    profile: ClassVar[str] = "Exp"

    def markov(self, t: Float[Array, " n"]) -> Markov:
        """See `Kernel.markov`."""
        return matern(1, jnp.ravel(jnp.asarray(self.lengthscale, float))[0], self.variance, t)


class Matern32(AbstractStationary):
    """(1 + √3 r) exp(−√3 r)."""

    nugget: ClassVar[float] = ROUGH
    profile: ClassVar[str] = "Matern32"

    def markov(self, t: Float[Array, " n"]) -> Markov:
        """See `Kernel.markov`."""
        return matern(2, jnp.ravel(jnp.asarray(self.lengthscale, float))[0], self.variance, t)


class Matern52(AbstractStationary):
    """(1 + √5 r + 5 r² / 3) exp(−√5 r)."""

    nugget: ClassVar[float] = SMOOTH
    profile: ClassVar[str] = "Matern52"

    def markov(self, t: Float[Array, " n"]) -> Markov:
        """See `Kernel.markov`."""
        return matern(3, jnp.ravel(jnp.asarray(self.lengthscale, float))[0], self.variance, t)


class RBF(AbstractStationary):
    """exp(−r² / 2)."""

    nugget: ClassVar[float] = SMOOTH
    profile: ClassVar[str] = "ExpSquared"


class RationalQuadratic(AbstractStationary):
    """(1 + r² / (2 alpha))^(−alpha)."""

    alpha: Any = 1.0
    nugget: ClassVar[float] = SMOOTH
    profile: ClassVar[str] = "RationalQuadratic"

    def options(self) -> dict[str, Any]:
        """Alpha."""
        return {"alpha": self.alpha}


class AbstractPair(Kernel):
    """What sums and products share."""

    left: eqx.AbstractVar[Kernel]
    right: eqx.AbstractVar[Kernel]

    def scales(self, num_inputs: int) -> Float[Array, " d"]:
        """The shorter ones."""
        return jnp.minimum(self.left.scales(num_inputs), self.right.scales(num_inputs))

    def check(self, num_inputs: int, where: str = "kernel") -> None:
        """See `Kernel.check`."""
        self.left.check(num_inputs, f"{where}.left")
        self.right.check(num_inputs, f"{where}.right")


class Sum(AbstractPair):
    """The sum of two kernels."""

    left: Kernel
    right: Kernel
    nugget: ClassVar[float] = SMOOTH

    def matrix(self, x: Float[Array, "n d"], other: Float[Array, "k d"]) -> Float[Array, "n k"]:
        """Covariances between two sets of inputs."""
        return self.left.matrix(x, other) + self.right.matrix(x, other)

    def diagonal(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Variances at inputs."""
        return self.left.diagonal(x) + self.right.diagonal(x)

    def markov(self, t: Float[Array, " n"]) -> Markov:
        """See `Kernel.markov`."""
        return self.left.markov(t) + self.right.markov(t)


class Product(AbstractPair):
    """The product of two kernels."""

    left: Kernel
    right: Kernel
    nugget: ClassVar[float] = SMOOTH

    def matrix(self, x: Float[Array, "n d"], other: Float[Array, "k d"]) -> Float[Array, "n k"]:
        """Covariances between two sets of inputs."""
        return self.left.matrix(x, other) * self.right.matrix(x, other)

    def diagonal(self, x: Float[Array, "n d"]) -> Float[Array, " n"]:
        """Variances at inputs."""
        return self.left.diagonal(x) * self.right.diagonal(x)

    def markov(self, t: Float[Array, " n"]) -> Markov:
        """See `Kernel.markov`."""
        return self.left.markov(t) * self.right.markov(t)


def without_chain(kernel: Kernel) -> Kernel | None:
    """The part of a kernel that is not the covariance of a Markov chain, if there is one."""
    if isinstance(kernel, AbstractPair):
        return without_chain(kernel.left) or without_chain(kernel.right)
    return kernel if type(kernel).markov is Kernel.markov else None
