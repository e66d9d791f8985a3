"""Search for settings: many runs, what is tried, and the winner."""

from jaxrec.search.sweep import Choice, Sweep, sweep

__all__ = ["Choice", "Sweep", "sweep"]
