"""The host side: where data comes from, how it is split and shared out, and its packed form."""

from jaxrec.data.pack import history, pack
from jaxrec.data.partition import partition
from jaxrec.data.sources import load
from jaxrec.data.split import core, split
from jaxrec.data.synthetic import optimum, synthetic

__all__ = [
    "core",
    "history",
    "load",
    "optimum",
    "pack",
    "partition",
    "split",
    "synthetic",
]
