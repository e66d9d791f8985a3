"""A comparison of runs as tables: for a terminal, Markdown, LaTeX, CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.table import Table
from rich.text import Text

from jaxrec.output import csv_text
from jaxrec.report.bytes_to_quality import ENOUGH
from jaxrec.report.comparison import Comparison

MEANS, SENT = 6, 8  # columns up to those of what was sent when, and up to the differences
MEANT = (
    "Mean ± standard deviation over runs, none where all are the same; MB until patience ended, "
    f"until the best round, and until {ENOUGH:.0%} of the best validation value of what is sent"
)
LATEX = {"\\": r"\textbackslash{}"} | {c: f"\\{c}" for c in "%_&#$"} | {"±": r"$\pm$"}


def terminal_tables(found: Comparison) -> list[Table]:
    """The means, the best one bold, and the differences to the first line, if there are any."""
    head, rows = text_cells(found)
    best = int(np.argmax(found.table["mean"]))
    styles = ["bold" if number == best else "" for number in range(len(rows))]
    lines = [[Text(cell, style) for cell in row] for row, style in zip(rows, styles, strict=True)]
    shown = [_table(head[:MEANS], [line[:MEANS] for line in lines])]
    if (found.table["mb_per_client"] > 0).any():
        sent = lambda line: [line[0], line[3], *line[MEANS:SENT]]
        shown.append(_table(sent(["sent", *head[1:]]), map(sent, rows)))
    if len(rows) == 1:
        return shown
    head[0] = f"less {rows[0][0]}"
    cut = lambda line: [line[0], *line[SENT:]]
    return [*shown, _table(cut(head), map(cut, rows[1:]))]


def _table(head: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> Table:
    shown = Table(box=box.SIMPLE_HEAD)
    shown.add_column(head[0], overflow="fold")
    for name in head[1:]:
        shown.add_column(name, justify="right", overflow="fold")
    for row in rows:
        shown.add_row(*row)
    return shown


def markdown(found: Comparison) -> str:
    """A pipe table."""
    head, rows = text_cells(found)
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{caption(found)}"


def latex(found: Comparison) -> str:
    """A tabular for the package booktabs."""
    head, rows = text_cells(found)
    escape = lambda text: "".join(LATEX.get(letter) or letter for letter in text)
    line = lambda row: " & ".join(map(escape, row)) + r" \\"
    begin = rf"\begin{{tabular}}{{l{'r' * (len(head) - 1)}}}"
    middle = [r"\toprule", line(head), r"\midrule", *map(line, rows), r"\bottomrule"]
    return "\n".join([f"% {caption(found)}", begin, *middle, r"\end{tabular}"])


def csv(found: Comparison) -> str:
    """Every column in full."""
    table = found.table.rename_axis("method").assign(metric=found.metric)
    return csv_text(table.reset_index()).rstrip()


def text_cells(found: Comparison) -> tuple[list[str], list[list[str]]]:
    """The titles of the columns, and a line of cells for each group of runs."""
    head = ["test", "runs", found.metric, "MB per client", "seconds", "privacy"]
    head += ["MB to its best", f"MB to {ENOUGH:.0%}"]
    tested = len(found.table) > 1
    if tested:
        head += ["difference", "95 % interval", "p (Holm)", "d", "r"]
    return head, [_line_of_cells(str(label), row, tested) for label, row in found.table.iterrows()]


def _line_of_cells(label: str, row: Any, tested: bool) -> list[str]:
    spread = "" if np.isnan(row["sd"]) else f" ±{row['sd']:.4f}"
    texts = [label, f"{row['runs']:.0f}", f"{row['mean']:.4f}{spread}"]
    texts += [f"{row['mb_per_client']:.2f}", f"{row['seconds']:.1f}", row["privacy"]]
    sizes = row["mb_to_best"], row["mb_to_enough"]
    texts += ["never" if np.isnan(size) else f"{size:.2f}" for size in sizes]
    if not tested:
        return texts
    if np.isnan(row["difference"]):
        return [*texts, *[""] * 5]
    p = row["p_holm"]
    return [
        *texts,
        f"{row['difference']:+.4f}",
        f"{row['low']:+.4f} to {row['high']:+.4f}",
        f"{p:.3f}" if p >= 0.001 else f"{p:.0e}",
        f"{row['cohen_d']:+.2f}",
        f"{row['rank_biserial']:+.2f}",
    ]


def caption(found: Comparison) -> str:
    """What the numbers are."""
    if len(found.table) == 1:
        return f"{MEANT}."
    return (
        f"{MEANT}; differences to {found.table.index[0]}, paired over "
        f"{found.users:,} users (mean over seeds): bootstrap interval, Wilcoxon's p, "
        "Cohen's d and rank-biserial r."
    )
