"""A run as data: its settings, its results, its learning curves, and the retriever it leaves."""

import os
import zlib
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import from_json

from maw_gym.errors import InputError, expanded, first_line
from maw_gym.files import check_readable

if TYPE_CHECKING:
    import pandas as pd

    from maw_gym.corpora import Collection
    from maw_gym.routers.routed_encoder import RoutedEncoder

CONFIG: Final = "config.json"
METRICS: Final = "metrics.json"
PER_QUERY: Final = "per_query.csv.gz"
LARGEST: Final = 2_000_000  # bytes of a config.json or metrics.json; written ones have some 10,000


class Run:
    """What a training run has left in its folder, read when it is asked for.

    Args:
        path: the folder, such as `runs/NAME`.

    Raises:
        InputError: there is no such folder; and below: a file is not there, or is none of a run.

    Examples:
        >>> run = maw_gym.Run("runs/mine")
        >>> run.metrics["reward"]["gap_closed"]
        >>> run.curves()["eval/reward"].dropna().plot()
        >>> run.per_query().groupby("method")["nDCG@10"].mean()
        >>> run.retriever().search("how do I read a file line by line")
    """

    def __init__(self, path: str | Path) -> None:
        self.path = expanded(path)
        if not os.path.isdir(self.path):
            raise InputError(f"no run folder {str(path)!r}; give the folder of a training run")

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r})"

    @cached_property
    def config(self) -> dict[str, Any]:
        """Everything in config.json: learner, settings, dataset, encoder, versions, git commit."""
        return self._json(CONFIG)

    @property
    def settings(self) -> dict[str, Any]:
        """Every setting by the name of its flag."""
        settings = self.config.get("settings")
        if not isinstance(settings, dict):
            raise InputError(
                f"{self.path / CONFIG} has no settings; give the folder of another run"
            )
        return settings

    @cached_property
    def metrics(self) -> dict[str, Any]:
        """The results of a finished run: everything in metrics.json."""
        return self._json(METRICS)

    def collection(self) -> "Collection":
        """The collection, divided as the run had it."""
        from maw_gym.corpora import load_collection

        name = self.settings.get("dataset")
        if not isinstance(name, str):
            raise InputError(f"{self.path / CONFIG} does not name a dataset; give another run")
        return load_collection(name, self.settings.get("fold", 0), self.settings.get("folds"))

    def scalars(self) -> dict[str, dict[int, float]]:
        """By TensorBoard tag the value at each step, which counts training queries seen."""
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

        if not any(self.path.glob("events.out.tfevents.*")):
            return {}
        # All scalars, and none of the pictures.
        sizes = {"scalars": 0, "images": 1, "histograms": 1, "compressedHistograms": 1}
        events = EventAccumulator(str(self.path), size_guidance=sizes).Reload()
        return {
            tag: dict(sorted((one.step, one.value) for one in events.Scalars(tag)))
            for tag in events.Tags()["scalars"]
        }

    def curves(self) -> "pd.DataFrame":
        """`scalars` as a table: a row for each step, a column for each tag."""
        import pandas as pd

        curves = {tag: pd.Series(values) for tag, values in self.scalars().items()}
        return pd.DataFrame(curves).rename_axis("step")

    def per_query(self) -> "pd.DataFrame":
        """A row for each test query and method, with depth, reward and measures."""
        import pandas as pd

        path = self._file(PER_QUERY)
        try:
            return pd.read_csv(path, dtype={"query_id": str})
        except (OSError, EOFError, ValueError, zlib.error) as problem:
            raise InputError(
                f"{path} is damaged ({first_line(problem)}); give another run"
            ) from None

    def retriever(self, device: str = "auto") -> "RoutedEncoder":
        """The encoder and its router, see `RoutedEncoder.from_run`."""
        from maw_gym.routers.routed_encoder import RoutedEncoder

        return RoutedEncoder.from_run(self.path, device)

    def _file(self, name: str, largest: int | None = None) -> Path:
        path = self.path / name
        if not path.exists():
            raise InputError(
                f"no run with a {name} in {str(self.path)!r}; give the folder of a finished run"
            )
        check_readable(path, name, largest)
        return path

    def _json(self, name: str) -> dict[str, Any]:
        path = self._file(name, LARGEST)
        try:
            content = from_json(path.read_bytes())  # refuses what is nested too deeply
        except ValueError as error:
            raise InputError(f"{path} is not JSON ({error}); give the folder of a run") from None
        if not isinstance(content, dict):
            raise InputError(f"{path} is not a run's {name}; give the folder of a run")
        return content
