"""`python -m ftrain` is `ftrain`."""

import sys

from ftrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
