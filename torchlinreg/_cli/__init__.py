"""The command line: reads tables, fits and prints. `torchlinreg.__main__` calls it."""
