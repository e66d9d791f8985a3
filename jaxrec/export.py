"""The command `python -m jaxrec.export`, which is `jaxrec.cli.export`."""

import sys

from jaxrec.cli.command import callable_module
from jaxrec.serving.export import export

callable_module(__name__, export)

if __name__ == "__main__":
    from jaxrec.cli.export import main

    sys.exit(main(sys.argv[1:]))
