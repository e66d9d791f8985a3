"""The command `python -m jaxrec.compare`, which is `jaxrec.cli.compare`."""

import sys

from jaxrec.cli.command import callable_module
from jaxrec.report.comparison import compare

callable_module(__name__, compare)

if __name__ == "__main__":
    from jaxrec.cli.compare import main

    sys.exit(main(sys.argv[1:]))
