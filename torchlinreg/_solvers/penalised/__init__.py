"""Squared error with l1 penalties, bounds and ridge.

`quadratic` minimises a quadratic function of few coefficients, `active_set` brings problems on moments or
rows to it, and `refinement` corrects and certifies what float64 products do not determine. Bounds of
ill-conditioned columns go to `bounded`, in orthonormal coordinates, and `nearest`, by QR.
"""
