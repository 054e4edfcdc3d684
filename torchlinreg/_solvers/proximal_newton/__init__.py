"""Convex losses with kinks that nobody has told of: a user's function, known by its values and derivatives.

`points` evaluates rows, `kinks` finds kinks between two points of a row, `convex` is the problem of one
target, `model` the quadratic one with hinges at the kinks, which the interior point solves, `certificate`
bounds what is left from values and first derivatives of the rows, `proximal_newton` puts them together, and
`by_rows` serves the targets of a problem. Imports `interior_point` and what is below; `newton` imports it.
"""
