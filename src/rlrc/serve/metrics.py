"""Counts and times of a server, in Prometheus' text format."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counts and times of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "rlrc_requests", "Observations that were answered, by protocol", ["protocol"], registry=self.registry
        )
        self.errors = Counter(
            "rlrc_errors", "Requests that ended with an error, by protocol", ["protocol"], registry=self.registry
        )
        self.seconds = Histogram(
            "rlrc_stage_seconds",
            "Seconds of an answer by stage: read (message to model inputs), wait (for the policy), policy, total",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self.rows = Histogram(
            "rlrc_batch_rows", "Requests that the policy answered together", buckets=ROWS, registry=self.registry
        )
        self.waiting = Gauge("rlrc_waiting_requests", "Requests that wait for the policy", registry=self.registry)
        self.connections = Gauge("rlrc_connections", "Clients that are connected", registry=self.registry)

    def counts(self) -> dict[str, int]:
        """Observations that were answered, by protocol."""
        samples = (sample for metric in self.requests.collect() for sample in metric.samples)
        return {s.labels["protocol"]: int(s.value) for s in samples if s.name == "rlrc_requests_total"}

    def text(self) -> bytes:
        return generate_latest(self.registry)
