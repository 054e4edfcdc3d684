"""Squared error with l1 penalties, bounds and ridge.

`quadratic` minimises a quadratic function of few coefficients, `active_set` brings problems on moments or
rows to it, and `refinement` corrects and certifies what float64 products do not determine.
"""
