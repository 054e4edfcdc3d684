"""The command line, ``python -m torchlinreg``."""

import sys

from torchlinreg._cli.main import main

if __name__ == "__main__":
    sys.exit(main())
