"""The only code that knows data kinds, devices and dtypes.

X, y and weights of any kind become `RowBlocks`: blocks of rows as tensors on one device, over which
`map_reduce(of, merge)` runs. Imports `_linalg` and `_checks`.
"""
