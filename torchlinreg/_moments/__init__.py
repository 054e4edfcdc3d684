"""Additive statistics of rows: `of` a block, `merge` of two.

`moments` are second moments in float64 about a shift, `exact` those to about 100 bits, `gradient` sums of
residuals times columns, `standardised` moments as products of standardised columns, and `accumulated`
moments that a fitted model keeps. Rows come from `_data`; results go to `_objective` and the solvers.
Imports `_data` and `_linalg`.
"""
