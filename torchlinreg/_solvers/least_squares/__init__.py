"""Least squares and ridge: `normal_equations` for at least as many rows as features, `dual` for fewer.

`whitening` gives the optimum with coordinates in which the squared error is a sphere.
"""
