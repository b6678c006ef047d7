"""Several devices, several processes, and silos that keep their data: ``pushforward.distributed``."""

from .infer.distributed import Federated as Federated
from .infer.distributed import InProcess as InProcess
from .infer.distributed import Outcome as Outcome
from .infer.distributed import Processes as Processes
from .infer.distributed import ProcessPool as ProcessPool
from .infer.distributed import Server as Server
from .infer.distributed import SiloRunner as SiloRunner
from .infer.distributed import barrier as barrier
from .infer.distributed import check_same as check_same
from .infer.distributed import exchange as exchange
from .infer.distributed import federate as federate
from .infer.distributed import initialize as initialize
from .infer.distributed import self_test as self_test
from .infer.distributed import sweep as sweep
from .infer.distributed.ray_silos import RayActors as RayActors
