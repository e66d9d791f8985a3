"""The command `python -m jaxrec.sweep`, which is `jaxrec.cli.sweep`."""

import sys

from jaxrec.cli.command import callable_module
from jaxrec.search.sweep import sweep

callable_module(__name__, sweep)

if __name__ == "__main__":
    from jaxrec.cli.sweep import main

    sys.exit(main(sys.argv[1:]))
