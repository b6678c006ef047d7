"""Work of one program spread over several devices and processes, and over silos that keep their data."""

from .pool import ProcessPool as ProcessPool
from .processes import Processes as Processes
from .processes import barrier as barrier
from .processes import check_same as check_same
from .processes import exchange as exchange
from .processes import initialize as initialize
from .processes import self_test as self_test
from .silos import Federated as Federated
from .silos import InProcess as InProcess
from .silos import Server as Server
from .silos import SiloRunner as SiloRunner
from .silos import federate as federate
from .sweep import Outcome as Outcome
from .sweep import sweep as sweep
