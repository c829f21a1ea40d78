"""What a verifier service counts, for Prometheus.

Labels come from closed sets only: principles that are served (others count as ``other``), reasons,
states and causes. No caller can add a time series. Knows no gRPC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from cluster import service_process
from safeladder.errors import EnvironmentUnfitError
from safeladder.records import Verdict

OK = "OK"
OTHER = "other"
_BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class ServiceMetrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self, principles: Iterable[str]) -> None:
        self.registry = CollectorRegistry()
        self._principles = frozenset(principles)
        self._calls = Counter(
            "safeladder_verifier_calls",
            "Calls by principle and by OK or the reason of their refusal.",
            ["principle", "reason"],
            registry=self.registry,
        )
        self._verdicts = Counter(
            "safeladder_verifier_verdicts",
            "Verdicts by principle, status and cause.",
            ["principle", "status", "cause"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "safeladder_verifier_call_seconds",
            "Time from a call's body to its answer, for calls that were answered.",
            ["principle"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        # Looking a series up by its labels costs more than counting: keep those in use.
        self._calls_of: dict[tuple[str, str], Counter] = {}
        self._verdicts_of: dict[tuple[str, str, str], Counter] = {}
        self._seconds_of = {name: self._seconds.labels(name) for name in self._principles}

    def count_call(self, principle: str, reason: str = OK) -> None:
        """One call has ended."""
        key = (principle if principle in self._principles else OTHER, reason)
        series = self._calls_of.get(key)
        if series is None:
            series = self._calls_of[key] = self._calls.labels(*key)
        series.inc()

    def count_answer(self, principle: str, seconds: float) -> None:
        """A call of a served principle was answered."""
        self.count_call(principle)
        self._seconds_of[principle].observe(seconds)

    def count_verdicts(self, principle: str, verdicts: Sequence[Verdict]) -> None:
        """Verdicts were made, not taken from those that are kept."""
        for verdict in verdicts:
            cause = "" if verdict.cause is None else verdict.cause.value
            key = (principle, verdict.status.value, cause)
            series = self._verdicts_of.get(key)
            if series is None:
                series = self._verdicts_of[key] = self._verdicts.labels(*key)
            series.inc()

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge that is read when somebody looks."""
        gauge = Gauge(f"safeladder_verifier_{name}", text, registry=self.registry)
        gauge.set_function(read)

    def serve(self, bind: str) -> Callable[[], None]:
        """Answer Prometheus at ``http://<bind>/metrics`` from a thread; returns what ends it.

        Loopback only: the numbers are open to whoever reaches the port. Raises ``ConfigError``,
        ``EnvironmentUnfitError``.
        """
        option = "--metrics-bind"
        service_process.check_bind(bind, option)
        service_process.check_loopback(bind, ", and let a local agent fetch the metrics")
        service_process.check_free(bind, option)
        host, _, port = bind.rpartition(":")
        try:
            server, thread = start_http_server(int(port), host.strip("[]"), self.registry)
        except OSError as error:
            raise EnvironmentUnfitError(f"cannot listen on {bind} ({option}): {error}") from error

        def stop() -> None:
            server.shutdown()
            server.server_close()
            thread.join(5)

        return stop
