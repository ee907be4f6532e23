"""Write a run's report.html anew: its table, its curves, and its depths query by query.

`maw-gym report runs/NAME`
"""

from typing import Annotated, ClassVar

from maw_gym.runners.experiments.command_line import Flag
from maw_gym.runners.experiments.runs import run_main
from maw_gym.runners.report_page import QUERIES
from maw_gym.settings import Count, HomePath, checked


@checked
class ReportSettings:
    """Of which run."""

    main_flags: ClassVar = ("queries",)
    run: Annotated[HomePath, Flag(positional=True)]
    """folder of a finished run"""
    queries: Count = QUERIES
    """test queries that can be looked at one by one, at most"""


def main(settings: ReportSettings) -> None:
    """Write the page and say where it is."""
    from maw_gym.runners.report_page.page import write_report_page

    print(write_report_page(settings.run, queries=settings.queries))


if __name__ == "__main__":
    run_main(ReportSettings, main)
