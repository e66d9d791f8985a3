"""The command `python -m jaxrec.report`, which is `jaxrec.cli.report`."""

import sys

from jaxrec.cli.report import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
