"""What is told about runs: tables, comparisons with paired tests, and one HTML page."""

from jaxrec.report.comparison import Comparison, compare

__all__ = ["Comparison", "compare"]
