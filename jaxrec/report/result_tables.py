"""Tables of results for a terminal: test metrics, and what crossed the network."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from types import MappingProxyType

from rich import box
from rich.table import Table
from rich.text import Text

from jaxrec.federated import privacy_ledger
from jaxrec.files import Row
from jaxrec.report.bytes_to_quality import ENOUGH, Sent
from jaxrec.training.result import seconds_of

NOTHING: Mapping[str, Sent] = MappingProxyType({})


def metrics_table(results: Mapping[str, Row], *, k: int | None = None, protocol: str = "") -> Table:
    """One line a method: test metrics at `k` with standard errors, MB, seconds, privacy.

    `results` maps a method to its flat result (`result.json`); `k` defaults to 10 where it was
    measured, else to the longest list. The best value of each column is bold.
    """
    names = _columns(results, k)
    best = {
        name: max(_number(result, f"test/{name}") for result in results.values()) for name in names
    }
    shown = Table(
        caption=Text(protocol) if protocol else None, caption_justify="left", box=box.SIMPLE_HEAD
    )
    shown.add_column("test", no_wrap=True)
    promised = {method: privacy_ledger.short(result) for method, result in results.items()}
    told = any(promised.values())  # an older version did not say
    for name in [*names, "MB per client", "seconds", *(["privacy"] if told else [])]:
        shown.add_column(name, justify="right")
    for method, result in results.items():
        cells = []
        for name in names:
            value, error = _number(result, f"test/{name}"), result.get(f"test/{name}/se")
            text = f"{value:.4f}" + ("" if error is None else f" ±{error:.4f}")
            cells.append(Text(text, "bold" if value == best[name] else ""))
        cells += [f"{result['bytes/per_client'] / 1e6:.2f}", f"{seconds_of(result):.1f}"]
        shown.add_row(Text(method), *cells, *([promised[method]] if told else []))
    return shown


def traffic_table(results: Mapping[str, Row], sent: Mapping[str, Sent] = NOTHING) -> Table:
    """One line a method: what crossed the network, for one client and for all.

    `sent` says of each what one client had sent and received when it was good. The last column
    says how many times fewer bytes than the method with the most. Methods that send nothing are
    left out, and so are set-up, code tables and refreshes where no method has any.
    """
    results = {name: one for name, one in results.items() if one["bytes/total"]} or results
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
    good = ["until its best", f"until {ENOUGH:.0%} of the best"] if sent else []
    for name in [
        "up per client and round",
        "down per client and round",
        *each,
        *good,
        "federation",
    ]:
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
            *(sent[method] if sent else ()),
            total,
        ]
        times = results[most]["bytes/total"] / total if total else 0.0
        fewer = f"{times:,.{1 if times < 100 else 0}f}x" if times and method != most else ""
        shown.add_row(Text(method), *map(_size, sizes), *([fewer] if len(results) > 1 else []))
    return shown


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
    """Bytes to three digits: 0, 76.8 KB, 5.66 MB; what was never reached has none."""
    if isnan(number):
        return "never"
    for unit in ("B", "KB", "MB", "GB"):
        if number < 999.5:
            return f"{number:.3g} {unit}" if number else "0"
        number /= 1000
    return f"{number:,.0f} TB"
