"""The command `python -m jaxrec.train`, which is `jaxrec.cli.train`."""

import sys

from jaxrec.cli.command import callable_module
from jaxrec.training.run import train

callable_module(__name__, train)

if __name__ == "__main__":
    from jaxrec.cli.train import main

    sys.exit(main(sys.argv[1:]))
