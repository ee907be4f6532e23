"""Document index, ranking, BM25 candidates, evaluation and significance."""
