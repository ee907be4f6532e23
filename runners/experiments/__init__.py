"""The parts of `runners/compare.py`: methods, their cells, what follows from them, and the report.

A cell is one method on one dataset with one seed, in one fold where the dataset has folds. Cells
are computed one by one and kept on disk; everything in the report is derived from cells.
"""
