"""The command `python -m jaxrec.recommend`, which is `jaxrec.cli.recommend`."""

import sys

from jaxrec.cli.command import callable_module
from jaxrec.serving.recommendation import recommend

callable_module(__name__, recommend)

if __name__ == "__main__":
    from jaxrec.cli.recommend import main

    sys.exit(main(sys.argv[1:]))
