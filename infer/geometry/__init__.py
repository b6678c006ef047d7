"""Geometry shared by targets and samplers: mirror maps, supports, proximal operators."""

from .ellipsoid_barrier import EllipsoidBarrier as EllipsoidBarrier
from .mirror import AbstractMirror as AbstractMirror
from .mirror import Point as Point
from .polytope_barrier import PolytopeBarrier as PolytopeBarrier
from .product import Affine as Affine
from .product import Product as Product
from .prox import L1 as L1
from .separable import AbstractSeparable as AbstractSeparable
from .separable import BoltzmannShannon as BoltzmannShannon
from .separable import BoxBarrier as BoxBarrier
from .separable import Burg as Burg
from .separable import Euclidean as Euclidean
from .separable import FermiDirac as FermiDirac
from .separable import Hellinger as Hellinger
from .separable import HyperbolicEntropy as HyperbolicEntropy
from .separable import PowerMirror as PowerMirror
from .simplex import AbstractSimplex as AbstractSimplex
from .simplex import SimplexBarrier as SimplexBarrier
from .simplex import SimplexEntropy as SimplexEntropy
from .supports import ball as ball
from .supports import default_mirror as default_mirror
from .supports import ellipsoid as ellipsoid
from .supports import polytope as polytope
