"""Piecewise linear losses.

`program` states losses, penalties and bounds as sums of hinges, `interior_point` solves that by steps of
Newton's method, and `vertex` finds the vertex that the steps have come near.
"""
