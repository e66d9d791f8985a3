"""The command `python -m jaxrec.coordinate`, which is `jaxrec.cli.coordinate`."""

import sys

if __name__ == "__main__":
    from jaxrec.cli.coordinate import main

    sys.exit(main(sys.argv[1:]))
