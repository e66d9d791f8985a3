"""What a run leaves behind and what a reader sees: files written whole, curves and tables.

Every file is written beside its final name and moved there, so that no reader and no killed run
ever sees half of one.
"""

from __future__ import annotations

import json
import math
import os
import sys
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from jaxrec.types import CheckpointError

Row = dict[str, Any]


def write_atomic(path: Path, write: Callable[[Path], Any]) -> None:
    """Call `write` with a path beside `path`, then move what it wrote to `path`.

    Threads and processes that write the same path do not disturb each other.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    try:
        write(beside)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Strict JSON: a number that is not finite becomes null."""
    write_text(path, json.dumps(_plain(value), indent=1, allow_nan=False) + "\n")


def json_line(value: Any) -> str:
    """Strict JSON in one line."""
    return json.dumps(_plain(value), allow_nan=False)


def write_text(path: Path, text: str) -> None:
    """A page of text."""
    write_atomic(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def say(text: str, *, shown: bool = True) -> None:
    """A line on stderr."""
    if shown:
        print(text, file=sys.stderr)


def append_row(path: Path, row: Row) -> None:
    """Add one line to a JSONL file."""
    with path.open("a") as file:
        file.write(json_line(row) + "\n")


def read_rows(path: Path, needed: Collection[str] = ("round", "seconds")) -> list[Row]:
    """The rows of a JSONL file, none if it is absent; a last line cut short by a kill is dropped.

    Raises CheckpointError for any other line that is no JSON object or lacks one of `needed`.
    """
    rows: list[Row] = []
    lines = path.read_text().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except ValueError:
            if number == len(lines):
                break
            row = None
        if lacking := set(needed) - set(row if isinstance(row, dict) else ()):
            raise CheckpointError(f"{path}, line {number}: damaged, lacks {min(lacking)}")
        rows.append(row)
    return rows


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """A whole JSONL file."""
    text = "".join(json_line(row) + "\n" for row in rows)
    write_atomic(path, lambda beside: beside.write_text(text, encoding="utf-8"))


def write_users(path: Path, users: pd.DataFrame) -> None:
    """Per-user values as parquet."""
    write_atomic(path, lambda beside: users.to_parquet(beside, index=False))


def measured(monitor: str, names: Iterable[str]) -> str | None:
    """The one of `names` that is `monitor`; a sampled metric says its negatives after its name."""
    return next((name for name in names if name == monitor or name.startswith(f"{monitor}(")), None)


def write_curve(
    path: Path, curves: Mapping[str, Sequence[Row]], monitor: str, clients: int
) -> None:
    """The monitored validation metric over rounds, and over MB that a client sent and received.

    `curves` maps a method to its rows. A method evaluated once is a dot on a dashed level; one that
    sent nothing is a dashed level over bytes.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4), layout="constrained")
    FigureCanvasAgg(figure)
    over_rounds, over_bytes = figure.subplots(1, 2, sharey=True)
    names = (name for rows in curves.values() for row in rows for name in row)
    key = measured(f"valid/{monitor}", names) or f"valid/{monitor}"
    for number, (method, rows) in enumerate(curves.items()):
        points = [row for row in rows if row.get(key) is not None]
        values, style = [row[key] for row in points], {"color": f"C{number}", "label": method}
        draw(over_rounds, [row["round"] for row in points], values, style)
        draw(over_bytes, [row["bytes"] / clients / 1e6 for row in points], values, style)
    over_rounds.set(xlabel="round", ylabel=key.replace("/", " "))
    over_bytes.set(xlabel="MB per client, up and down", xscale="log")
    over_bytes.xaxis.set_major_formatter("{x:g}")
    for axes in (over_rounds, over_bytes):
        axes.grid(alpha=0.3)
    if over_rounds.get_legend_handles_labels()[0]:
        over_rounds.legend(frameon=False)
    write_atomic(path, lambda beside: figure.savefig(beside, dpi=150, format="png"))


def table(results: Mapping[str, Row], *, k: int | None = None, protocol: str = "") -> Any:
    """A rich table, one line a method: test metrics at `k` with standard errors, MB, seconds.

    `results` maps a method to its flat result (`result.json`); `k` defaults to 10 where it was
    measured, else to the longest list. The best value of each column is bold.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    names = _columns(results, k)
    best = {
        name: max(_number(result, f"test/{name}") for result in results.values()) for name in names
    }
    shown = Table(
        caption=Text(protocol) if protocol else None, caption_justify="left", box=box.SIMPLE_HEAD
    )
    shown.add_column("test", no_wrap=True)
    for name in [*names, "MB per client", "seconds"]:
        shown.add_column(name, justify="right")
    for method, result in results.items():
        cells = []
        for name in names:
            value, error = _number(result, f"test/{name}"), result.get(f"test/{name}/se")
            text = f"{value:.4f}" + ("" if error is None else f" ±{error:.4f}")
            cells.append(Text(text, "bold" if value == best[name] else ""))
        seconds = sum(result[f"seconds/{part}"] for part in ("compile", "train", "evaluate"))
        cells += [f"{result['bytes/per_client'] / 1e6:.2f}", f"{seconds:.1f}"]
        shown.add_row(Text(method), *cells)
    return shown


def traffic_table(results: Mapping[str, Row]) -> Any:
    """A rich table, one line a method: what crossed the network, for one client and for all.

    The last column says how many times fewer bytes than the method with the most. Set-up, code
    tables and refreshes are left out where no method has any.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    most = max(results, key=lambda method: results[method]["bytes/total"])
    parts = {"setup": "set-up", "codes": "code tables", "refresh": "refreshes"}
    parts = {
        part: title
        for part, title in parts.items()
        if any(result[f"bytes/{part}_total"] for result in results.values())
    }
    shown = Table(box=box.SIMPLE_HEAD)
    shown.add_column("bytes", no_wrap=True)
    each = [f"{title} per client" for title in (*parts.values(), "total")]
    for name in ["up per client and round", "down per client and round", *each, "federation"]:
        shown.add_column(name, justify="right")
    if len(results) > 1:
        shown.add_column(Text(f"fewer than {most}"), justify="right")
    for method, result in results.items():
        total = result["bytes/total"]
        share = result["bytes/per_client"] / total if total else 0.0
        sizes = [
            result["bytes/up_per_client_round"],
            result["bytes/down_per_client_round"],
            *(share * result[f"bytes/{part}_total"] for part in parts),
            result["bytes/per_client"],
            total,
        ]
        times = results[most]["bytes/total"] / total if total else 0.0
        fewer = f"{times:,.{1 if times < 100 else 0}f}x" if times and method != most else ""
        shown.add_row(Text(method), *map(_size, sizes), *([fewer] if len(results) > 1 else []))
    return shown


class Line:
    """The live line of a run: round, metric, best, bytes, rounds per second, time left.

    On a terminal it is redrawn in place; elsewhere each evaluation prints a line.
    """

    def __init__(self, method: str, rounds: int, *, shown: bool = True):
        from rich.console import Console

        self.method, self.rounds, self.first = method, rounds, None
        self.console = Console(stderr=True, highlight=False, quiet=not shown)
        self.live = self.console.status(f"{method}: compiling")

    def __enter__(self) -> Line:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def update(self, memory: Any, name: str, value: float) -> None:
        """Show a run at an evaluation. The pace is that since the first one, compiled by then."""
        text = (
            f"{self.method}: round {memory.round}/{self.rounds}  {name} {value:.4f}  "
            f"best {memory.best:.4f} at {memory.best_round}  {memory.ledger.total / 1e6:,.1f} MB"
        )
        now = time.perf_counter()
        if self.first:
            rate = (memory.round - self.first[0]) / (now - self.first[1])
            left = timedelta(seconds=round((self.rounds - memory.round) / rate))
            text += f"  {rate:,.1f} rounds/s  {left} left"
        else:
            self.first = memory.round, now
        if self.console.is_terminal:
            self.live.update(text)
        else:
            self.console.print(text, markup=False, soft_wrap=True)


def _columns(results: Mapping[str, Row], k: int | None) -> list[str]:
    keys = [n[5:] for n in next(iter(results.values()), {}) if n.startswith("test/")]
    keys = [name for name in keys if "/" not in name]
    lengths = {int(name.partition("@")[2].partition("(")[0]) for name in keys if "@" in name}
    if k is None and lengths:
        k = 10 if 10 in lengths else max(lengths)
    wanted = ("NDCG", "F1", "HR", "MRR")
    stems = {name: name.partition("(")[0] for name in keys}
    return [
        name
        for stem in wanted
        for name in keys
        if stems[name] in (f"{stem}@{k}", stem)
    ]  # fmt: skip


def _number(result: Row, name: str) -> float:
    value = result.get(name)
    return float("nan") if value is None else value


def _size(number: float) -> str:
    """Bytes to three digits: 0, 76.8 KB, 5.66 MB."""
    for unit in ("B", "KB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}" if number else "0"
        number /= 1000
    return f"{number:,.0f} TB"


def draw(axes: Any, x: Sequence[float], y: Sequence[float], style: Mapping[str, Any]) -> None:
    """A line, or where there is none to draw the best value as a level, and a dot where x > 0."""
    if len(x) > 1 and x[-1] > 0:
        axes.plot(x, y, **style)
    elif x:
        axes.axhline(max(y), linestyle="--", **style)
        if x[-1] > 0:
            axes.plot(x, y, "o", color=style["color"])


def _plain(value: Any) -> Any:
    """Numbers, strings, lists and dicts only."""
    if isinstance(value, Mapping):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
