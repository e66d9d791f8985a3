"""The command `python -m jaxrec.data`, which is `jaxrec.cli.data`."""

import sys

from jaxrec.cli.data import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
