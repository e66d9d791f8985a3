"""What a service counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Counts:
    """One service's counters; their names begin with jaxrec_."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "jaxrec_requests", "requests answered", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "jaxrec_request_seconds", "from a request's headers to its answer", ["path"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.in_flight = Gauge(
            "jaxrec_requests_in_flight", "requests being served", registry=registry
        )
        self.batch = Histogram(
            "jaxrec_batch_requests", "requests that shared a call", ["path"],
            buckets=SIZES, registry=registry,
        )  # fmt: skip
        self.batch_users = Histogram(
            "jaxrec_batch_users", "users of a call, or what stands for them", ["path"],
            buckets=SIZES, registry=registry,
        )  # fmt: skip
        self.cut = Counter(
            "jaxrec_connections_cut", "connections that were ended", ["reason"], registry=registry
        )
        self.opened = Counter(
            "jaxrec_runs_opened", "runs that were opened", ["outcome"], registry=registry
        )
        for outcome in ("served", "refused"):
            self.opened.labels(outcome)
        self.since = Gauge(
            "jaxrec_run_opened_timestamp_seconds", "when the run was opened", registry=registry
        )

    def text(self) -> bytes:
        """All counts, in the text format of Prometheus."""
        return generate_latest(self.registry)
