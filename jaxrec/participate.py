"""The command `python -m jaxrec.participate`, which is `jaxrec.cli.participate`."""

import sys

if __name__ == "__main__":
    from jaxrec.cli.participate import main

    sys.exit(main(sys.argv[1:]))
