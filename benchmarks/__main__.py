"""The benchmarks, as one table, JSON and a picture of what they reach of this device's limits.

    python -m benchmarks [NAME ...] [--quick] [--out runs/benchmarks]

Without names all of them run, one after another; --quick takes the small sizes. The device's
limits, a large copy and a large matrix product for each dtype, are measured first. A benchmark that
fails, or for which data or a package is missing, says so and leaves the others alone.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import traceback
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use("agg")

import matplotlib.pyplot as plt
from rich.console import Console
from rich.table import Table

from benchmarks.common import Bench, measure
from jaxrec.training.prepared import environment
from jaxrec.types import DataError

NAMES = (
    "start", "compile", "ranking", "fedcia", "rqfedrec", "quantize", "sequential", "llmd4rec",
    "decoder", "encoder", "agentcf", "seeds", "attacks", "privacy", "privacy_curve", "scale",
    "large", "serve", "updates", "flower",
)  # fmt: skip


def run(bench: Bench, names: list[str], quick: bool) -> bool:
    """Run the named benchmarks, keeping what there is after each; whether none of them broke."""
    sound = True
    for name in names:
        bench.benchmark = name
        print(f"\n== {name} ==", flush=True)
        try:
            importlib.import_module(f"benchmarks.{name}").main(bench, quick)
        except (DataError, ModuleNotFoundError) as error:
            print(f"{name} is left out: {error}")
            sound &= not str(getattr(error, "name", "")).startswith(("jaxrec", "benchmarks"))
        except Exception:
            traceback.print_exc()
            sound = False
        keep(bench)
    return sound


def keep(bench: Bench) -> None:
    """Write all rows so far, and the picture."""
    rows = [
        row._asdict() | {"timing": row.timing._asdict(), "work": row.work._asdict()}
        for row in bench.rows
    ]
    limits = {"copy": bench.copy, "product": bench.product}
    kept = {"environment": environment(), "limits": limits, "rows": rows}
    bench.out.mkdir(parents=True, exist_ok=True)
    (bench.out / "benchmarks.json").write_text(json.dumps(kept, indent=1) + "\n")
    picture(bench, bench.out / "roofline.png")


def table(bench: Bench) -> Table:
    found = Table(title=f"{bench.device}: shares are of this device's own limits", box=None)
    found.add_column("benchmark")
    found.add_column("what", overflow="fold")
    for title in ("ms", "±", "runs", "compile s", "GB/s", "share", "GFLOP/s", "share", "MB"):
        found.add_column(title, justify="right")
    for row in bench.rows:
        seconds, (copied, multiplied) = row.timing.median, bench.shares(row)
        speed = lambda amount, seconds=seconds: f"{amount / seconds / 1e9:,.0f}" if amount else ""
        share = lambda part: f"{part:.0%}" if part else ""
        found.add_row(
            row.benchmark, row.name, f"{seconds * 1e3:,.2f}", f"{row.timing.spread * 1e3:,.2f}",
            str(row.timing.runs), f"{row.timing.compile:.1f}", speed(row.work.bytes), share(copied),
            speed(row.work.flop), share(multiplied),
            f"{row.timing.memory / 1e6:,.0f}" if row.timing.memory else "",
        )  # fmt: skip
    return found


def picture(bench: Bench, file: Path) -> None:
    """The roofline: of rows that state both, operations a byte against operations a second."""
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    intensity = np.geomspace(0.1, 1e4, 200)
    for dtype, flop in bench.product.items():
        axes.plot(intensity, np.minimum(intensity * bench.copy, flop) / 1e9, label=dtype)
    for name in dict.fromkeys(row.benchmark for row in bench.rows):
        found = [r for r in bench.rows if r.benchmark == name and r.work.flop and r.work.bytes]
        if found:
            x = [row.work.flop / row.work.bytes for row in found]
            y = [row.work.flop / row.timing.median / 1e9 for row in found]
            axes.plot(x, y, "o", label=name)
    axes.set(
        xscale="log", yscale="log", xlabel="FLOP a byte that must be moved", ylabel="GFLOP/s",
        title=bench.device,
    )  # fmt: skip
    axes.legend(fontsize="small")
    figure.savefig(file, dpi=150)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--quick", action="store_true", help="small sizes")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks"), help="a folder")
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"no benchmark {unknown.pop()!r}: there are {', '.join(NAMES)}")
    print("load of the machine over 1, 5 and 15 minutes:", *np.round(os.getloadavg(), 2))
    bench = measure()
    bench.out = options.out
    sound = run(bench, options.names or list(NAMES), options.quick)
    print()
    Console(width=160).print(table(bench))
    print(f"\nload of the machine: {os.getloadavg()[0]:.2f}; written to {options.out}")
    raise SystemExit(not sound)


if __name__ == "__main__":
    main()
