"""Linear algebra below everything else: it knows arrays, not rows, problems or parameters.

`double_double` holds error-free transformations and arithmetic of twice the precision, `gram` products of
rows with themselves and their rounding errors, `cholesky` triangular factors and what is solved with them,
and `threads` keeps the threads of NumPy and SciPy out of torch's way. Imports nothing of the package.
"""
