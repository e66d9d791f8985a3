"""The command `python -m jaxrec.serve`, which is `jaxrec.cli.serve`."""

import sys

if __name__ == "__main__":
    from jaxrec.cli.serve import main

    sys.exit(main(sys.argv[1:]))
