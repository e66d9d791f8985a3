"""`python -m jaxrec` lists the commands; `python -m jaxrec NAME ...` is `python -m jaxrec.NAME`."""

import sys

from jaxrec.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
