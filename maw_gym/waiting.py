"""How torch's threads wait for each other: asleep, not spinning. Imported before torch.

Every operation on several threads ends at a barrier. libgomp, with which torch's wheels are built,
lets threads spin there; where another process has one of the cores, the spinning one keeps from
work the thread that all wait for. Fewer threads would help as well, but then results, which are
rounded by thread count, would depend on what else the machine did when a run began.
"""

import os
import sys
from collections.abc import MutableMapping

SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")


def wait_asleep(environment: MutableMapping[str, str], torch_is_loaded: bool) -> None:
    """Ask for sleeping threads, unless something else is asked for or it is too late.

    Args:
        environment: of the process; libgomp reads it when torch loads it.
        torch_is_loaded: nothing can be changed any more.
    """
    if not torch_is_loaded and not any(name in environment for name in SETTINGS):
        environment["OMP_WAIT_POLICY"] = "PASSIVE"


wait_asleep(os.environ, "torch" in sys.modules)
