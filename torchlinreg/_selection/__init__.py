"""Which strength of the penalty: paths, and cross-validation.

`path` follows solutions over a grid, `folds` has moments of what splits train and test on, `scores` those
of many models, and `search` tries all candidates on all splits. Imports `_training` and `_solvers`, not the
estimators.
"""
