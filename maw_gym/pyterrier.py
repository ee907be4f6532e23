"""A PyTerrier transformer, so that ``pt.Experiment`` can compare a routed encoder with others.

Source: Macdonald and Tonellotto, Declarative Experimentation in Information Retrieval using
PyTerrier, ICTIR 2020. An optional dependency: ``pip install 'maw_gym[pyterrier]'``. No Java is
started.
"""

from typing import Any

from maw_gym.errors import InputError
from maw_gym.routers.routed_encoder import RoutedEncoder

try:
    import pandas as pd
    import pyterrier as pt
except ImportError:
    raise InputError(
        "maw_gym.pyterrier needs PyTerrier; install it by pip install 'maw_gym[pyterrier]'"
    ) from None


class RoutedRetriever(pt.Transformer):
    """Queries in, the best documents of a routed encoder out.

    Args:
        encoder: with documents to search, see `RoutedEncoder.index`.
        num_results: documents per query.
        hybrid: fuse the cosines with BM25, see `RoutedEncoder.search`.
    """

    def __init__(
        self, encoder: RoutedEncoder, num_results: int = 1000, *, hybrid: bool = False
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.num_results = num_results
        self.hybrid = hybrid

    def transform(self, queries: "pd.DataFrame") -> "pd.DataFrame":
        """Rows of queries (with qid and query), one for each document, with docno, score and rank.

        Ranks are from 0, in trec_eval's order of equal scores.
        """
        pt.validate.query_frame(queries, extra_columns=["query"])
        found = self.encoder.search(queries["query"].tolist(), self.num_results, hybrid=self.hybrid)
        rows: list[dict[str, Any]] = [
            {**query, "docno": one["id"], "score": one["score"], "rank": rank}
            for query, of_query in zip(queries.to_dict("records"), found, strict=True)
            for rank, one in enumerate(of_query)
        ]
        columns = [*queries.columns, "docno", "score", "rank"]
        return pd.DataFrame(rows, columns=list(dict.fromkeys(columns)))
