"""Jobs of the tests of sweeps: functions of a module, which spawned processes can import."""

import os
import signal
import time
from pathlib import Path


def square(x):
    if x == 3:
        raise ValueError("three is not for squaring")
    return {"square": x * x, "pid": os.getpid()}


def unlucky(setting):
    """Dies when it is first asked for the setting that is named in the folder, and always for ``"never"``."""
    folder, name = setting
    mark = Path(folder) / name
    if name == "never" or (name == "once" and not mark.exists()):
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    if name == "slow":
        time.sleep(60)
    return name


def gone(x):
    return lambda: x
