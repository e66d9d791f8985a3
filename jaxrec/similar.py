"""The command `python -m jaxrec.similar`, which is `jaxrec.cli.similar`."""

import sys

if __name__ == "__main__":
    from jaxrec.cli.similar import main

    sys.exit(main(sys.argv[1:]))
