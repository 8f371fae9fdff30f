"""Entry point of `python -m ftrain`, the same as `ftrain`."""

import sys

from ftrain.cli import main

if __name__ == "__main__":
    sys.exit(main())
