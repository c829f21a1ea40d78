"""How full vLLM is, as its scheduler says after every step.

vLLM adds its Prometheus logger to every engine with statistics, unless it is given one: this class
takes that place, so that a step costs a few assignments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vllm.v1.metrics.loggers import PrometheusStatLogger

from safeladder.engine_profile import EngineLoad

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats


class LoadRecorder(PrometheusStatLogger):  # type: ignore[misc]
    """Keeps the newest figures. Preemptions that a weight update makes on purpose do not count."""

    def __init__(self, vllm_config: VllmConfig, engine_indexes: list[int] | None = None) -> None:
        self._kv_share = 0.0
        self._running = 0
        self._waiting = 0
        self._preemptions = 0
        self._intended = 0

    @classmethod
    def of(cls, llm: AsyncLLM) -> LoadRecorder:
        """The recorder of an engine that was made with it."""
        assert llm.logger_manager is not None, "the engine keeps no statistics"
        return next(one for one in llm.logger_manager.stat_loggers if isinstance(one, cls))

    @property
    def load(self) -> EngineLoad:
        """As of the newest step."""
        return EngineLoad(
            kv_share=self._kv_share,
            running=self._running,
            waiting=self._waiting,
            preemptions=self._preemptions,
        )

    def record(
        self,
        scheduler_stats: SchedulerStats | None,
        iteration_stats: IterationStats | None,
        mm_cache_stats: Any = None,
        engine_idx: int = 0,
    ) -> None:
        """See ``StatLoggerBase.record``."""
        if scheduler_stats is not None:
            self._kv_share = scheduler_stats.kv_cache_usage
            self._running = scheduler_stats.num_running_reqs
            self._waiting = scheduler_stats.num_waiting_reqs
        if iteration_stats is not None:
            intended = min(self._intended, iteration_stats.num_preempted_reqs)
            self._intended -= intended
            self._preemptions += iteration_stats.num_preempted_reqs - intended

    def will_preempt_all(self) -> None:
        """All running requests are about to be preempted, and computed anew."""
        self._intended += self._running

    def log_engine_initialized(self) -> None:
        """See ``StatLoggerBase``."""

    def record_sleep_state(self, sleep: int = 0, level: int = 0) -> None:
        """See ``StatLoggerBase``."""
