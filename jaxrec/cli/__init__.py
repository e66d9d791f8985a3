"""The commands: words in, calls of the library, tables out.

Each module has `main(words)`, which returns the exit status: 0, done; 2, refused, with one line on
stderr that says why; 130, interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "train": "train a method and its baselines, and measure them",
    "sweep": "search for settings, best by validation",
    "recommend": "write lists of items for users",
    "similar": "write lists of items like others",
    "serve": "answer requests over HTTP",
    "coordinate": "be the server of a federation of real machines",
    "participate": "be a client of one, with your own rows",
    "compare": "compare runs user by user, with tests",
    "report": "write one HTML page about runs",
    "export": "write vectors and indices for other servers",
    "data": "check a data set: what it holds and what is wrong with it",
}


def main(words: Sequence[str]) -> int:
    """Run the command that the first word names; without words, list the commands."""
    if words and words[0] in COMMANDS:
        return import_module(f"jaxrec.cli.{words[0]}").main(words[1:])
    listed = [f"  python -m jaxrec.{name:11} {about}" for name, about in COMMANDS.items()]
    print("\n".join(["The commands of jaxrec. Each explains itself with --help.", "", *listed]))
    if not words or words[0] in ("-h", "--help"):
        return 0
    from jaxrec.settings.fields import unknown
    from jaxrec.training.progress import say

    say(f"error: {unknown(f'{words[0]}: no such command', words[0], COMMANDS)}")
    return 2
