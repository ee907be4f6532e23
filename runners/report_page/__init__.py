"""The page that a run leaves to be looked at: its table, its curves, and its depths query by query.

`page.py` writes one file that needs no server and no network, from what `payload.py` gathers of the
run's files; `sample.py` looks at some test queries through every depth, `curves.py` reads the
learning curves. What a browser does with it is in assets/.
"""

from runners.report_page.page import write_report_page

__all__ = ["write_report_page"]
