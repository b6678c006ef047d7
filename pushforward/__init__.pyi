from . import infer as infer
from . import models as models
from . import samplers as samplers
from .catalogue import methods as methods
from .infer.approximation import Approximation as Approximation
from .infer.approximation import Particles as Particles
from .infer.errors import InvalidArgument as InvalidArgument
from .infer.errors import NonFinite as NonFinite
from .infer.errors import NotAvailable as NotAvailable
from .infer.errors import PushforwardError as PushforwardError
from .infer.errors import StoreError as StoreError
from .infer.errors import UnsupportedTarget as UnsupportedTarget
from .infer.posterior import Posterior as Posterior
from .infer.run.fit import fit as fit
from .infer.run.fit import load as load
from .infer.run.fit import resume as resume
from .infer.target import Target as Target
from .infer.variational.autoguide import AutoGuide as AutoGuide
from .infer.variational.gaussian.advi import ADVI as ADVI
from .infer.variational.gaussian.approximation import GaussianApproximation as GaussianApproximation
from .infer.variational.gaussian.bwsgd import BWSGD as BWSGD
from .infer.variational.gaussian.fbgvi import FBGVI as FBGVI
from .infer.variational.gaussian.fbgvi import SVRGVI as SVRGVI
from .infer.variational.gaussian.glm import glm_target as glm_target
from .infer.variational.gaussian.laplace import Laplace as Laplace
from .infer.variational.gaussian.natural import NGVI as NGVI
from .infer.variational.gaussian.natural import SqrtNGVI as SqrtNGVI
from .infer.variational.pathfinder import Pathfinder as Pathfinder
from .samplers.blackjax_adapter import as_sampling_algorithm as as_sampling_algorithm
from .samplers.hmc import HMC as HMC
from .samplers.hmc import MALA as MALA
from .samplers.hmc import NUTS as NUTS
from .samplers.kernel import Kernel as Kernel
from .samplers.mclmc import MCLMC as MCLMC
from .samplers.smc import SMC as SMC

__version__: str
__all__: list[str]
