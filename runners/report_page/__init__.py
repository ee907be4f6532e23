"""The page that a run leaves to be looked at: its table, its curves, and its depths query by query.

`page.py` writes one file that needs no server and no network, from what `payload.py` gathers of the
run's files; `sample.py` looks at some test queries through every depth, `curves.py` reads the
learning curves. What a browser does with it is in assets/.
"""

from typing import Final

QUERIES: Final = 40  # test queries that can be looked at one by one, at most
