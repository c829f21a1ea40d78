"""What a verifier service counts, for Prometheus.

Labels come from closed sets only: principles that are served (others count as ``other``), reasons,
states and causes. No caller can add a time series. Knows no gRPC.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

from safeladder import addresses
from safeladder.errors import EnvironmentUnfitError
from safeladder.records import Verdict

OK = "OK"
OTHER = "other"
BUCKETS_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)


class _Times:
    """How long the calls of one principle took."""

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_S) + 1)
        self.sum_s = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS_S, seconds)] += 1
        self.sum_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bound → number of calls up to it."""
        total, found = 0, []
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), self.counts, strict=True):
            total += count
            found.append((bound, float(total)))
        return found


class ServiceMetrics:
    """Plain numbers of one server: counting is an addition, Prometheus is served when it asks."""

    def __init__(self, principles: Iterable[str]) -> None:
        self._times = {principle: _Times() for principle in principles}
        self._calls: Counter[tuple[str, str]] = Counter()
        self._verdicts: Counter[tuple[str, str, str]] = Counter()
        self._gauges: dict[str, tuple[str, Callable[[], float]]] = {}
        self.registry = CollectorRegistry()
        self.registry.register(self)

    def count_call(self, principle: str, reason: str = OK) -> None:
        """One call has ended."""
        self._calls[principle if principle in self._times else OTHER, reason] += 1

    def count_answer(self, principle: str, seconds: float) -> None:
        """A call of a served principle was answered."""
        self._calls[principle, OK] += 1
        self._times[principle].add(seconds)

    def count_verdicts(self, principle: str, verdicts: Sequence[Verdict]) -> None:
        """Verdicts were made, not taken from those that are kept."""
        for verdict in verdicts:
            self._verdicts[principle, verdict.status, verdict.cause or ""] += 1

    def watch(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A gauge that is read when somebody looks."""
        self._gauges[name] = (text, read)

    def collect(self) -> Iterator[Metric]:
        """What Prometheus sees. Called from its thread: copies before it walks."""
        prefix = "safeladder_verifier"
        text = "Calls by principle and by OK or the reason of their refusal."
        calls = CounterMetricFamily(f"{prefix}_calls", text, labels=["principle", "reason"])
        for call, number in self._calls.copy().items():
            calls.add_metric(call, number)
        text = "Verdicts by principle, status and cause."
        labels = ["principle", "status", "cause"]
        verdicts = CounterMetricFamily(f"{prefix}_verdicts", text, labels=labels)
        for verdict, number in self._verdicts.copy().items():
            verdicts.add_metric(verdict, number)
        text = "Time of calls that were answered, from their body to the answer."
        seconds = HistogramMetricFamily(f"{prefix}_call_seconds", text, labels=["principle"])
        for principle, times in self._times.items():
            seconds.add_metric([principle], times.buckets(), times.sum_s)
        yield from (calls, verdicts, seconds)
        for name, (text, read) in self._gauges.items():
            yield GaugeMetricFamily(f"{prefix}_{name}", text, value=read())

    def serve(self, bind: str) -> Callable[[], None]:
        """Answer Prometheus at ``http://<bind>/metrics`` from a thread; returns what ends it.

        Loopback only: the numbers are open to whoever reaches the port. Raises ``ConfigError``,
        ``EnvironmentUnfitError``.
        """
        option = "--metrics-bind"
        addresses.check_bind(bind, option)
        addresses.check_loopback(bind, ", and let a local agent fetch the metrics")
        addresses.check_free(bind, option)
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
