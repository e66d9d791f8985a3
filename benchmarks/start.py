"""What a user waits for before anything happens: `import jaxrec`, beside JAX and pandas alone.

    python -m benchmarks start

Each run is a process of its own, the interpreter's start included; files are in the page cache.
"""

from __future__ import annotations

import subprocess
import sys

from benchmarks.common import Bench, timed


def main(bench: Bench, quick: bool) -> None:
    del quick
    for line in ("pass", "import jax", "import jax, pandas", "import jaxrec"):
        start = lambda line=line: subprocess.run([sys.executable, "-c", line], check=True)
        bench.report(f"python -c '{line}'", timed(start, host=True)[1])
