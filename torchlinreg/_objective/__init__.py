"""What is minimised, and what comes out.

A `Problem` holds rows, loss and `Penalty` and makes the passes that solvers read; a `Solution` is what they
return; `evaluate` gives losses of models over rows. Imports `losses`, `_moments` and what is below.
"""
