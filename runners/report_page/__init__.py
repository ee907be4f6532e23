"""The page that a run leaves to be looked at; `page.py` writes it."""

QUERIES = 40  # test queries that can be looked at one by one, at most
