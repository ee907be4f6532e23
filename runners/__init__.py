"""The command line: thin scripts, and what they share.

On a machine that does other work too, torch's threads wait for each other asleep, not spinning;
libgomp reads this when torch is loaded. Which of its variables is set already says otherwise.
"""

import os

if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"} & set(os.environ):
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
