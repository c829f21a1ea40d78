"""verl's published asynchronous runs as workloads of ``cluster.performance``.

Published (verl-project/verl, ``docs/advance/fully_async.md``, and the launch scripts beside the
trainer): GPUs and their split, tensor parallelism, prompts of a step, responses of a prompt, length
limit, and mean seconds of a step and of its phases. All H20 GPUs.

Not published, so assumed or calibrated, each constant below with its reason:

* An engine's iteration takes ``FLOOR + PER_SEQUENCE · running sequences``. The slope is worked out
  from data sheets, the floor is calibrated so that the synchronous run's generation takes as long
  as published.
* Response lengths are log-normal; mean and sigma are calibrated on the streaming runs with the
  staleness thresholds 0, 0.1 and 0.3. The run with 0.5 is then a prediction, not a fit.
* Runs differ in how long their responses grew; each one's mean length is taken in proportion to
  the GPU-seconds of its published ``update_actor``.
* Phase times are means over a whole run, though responses grew from its first to its last hundred
  steps: the model is the steady state at the mean. Validation every 20 steps is left out.
* The rest of a step (step - gen - update_actor [- ref]) is the weight synchronisation, during which
  engines stand still.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from benchmarks.verl_policy import VerlPolicy, VerlSettings
from cluster.coordinator import Coordinator
from cluster.length_distribution import LogNormalLengths
from cluster.modelled_engine import DecodeCurve, ModelledEngine
from cluster.performance import NumberedPrompts, simulate_performance
from cluster.performance_report import PerformanceReport
from cluster.run_model import EngineModel, LatencyModel, LearnerModel, RunModel
from safeladder.config import Config
from safeladder.records import GroupKey

GROUPS_PER_STEP = 512
"""``train_batch_size``, and what a step of the tables trains."""
GROUP_SIZE = 16
"""``rollout.n``."""
MAX_SEQUENCES = 1024
"""``max_num_seqs`` of verl's rollout config; the published runs never reach it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """One row of the tables, seconds."""

    name: str
    rollout_gpus: int
    learner_gpus: int
    staleness_threshold: float
    step_s: float
    wait_s: float
    """``gen``: the trainer waits for samples."""
    train_s: float
    """``update_actor``, and ``ref`` where there is one."""

    @property
    def sync_s(self) -> float:
        """What the tables leave over."""
        return self.step_s - self.wait_s - self.train_s

    @property
    def bubble(self) -> float:
        """β_t."""
        return self.wait_s / self.step_s

    @property
    def light_s(self) -> float:
        """The learner's own time: the speed of light of this split."""
        return self.train_s + self.sync_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Runs of one model, with what was calibrated on them."""

    gpus_per_engine: int
    """``gen_tp``."""
    max_tokens: int
    """Longest response."""
    groups_per_update: int
    updates_per_sync: int
    floor_s: float
    per_sequence_s: float
    mean_tokens: float
    """Of a run whose steps train for ``train_gpu_s``."""
    train_gpu_s: float
    sigma: float
    kv_tokens: int
    """Of one engine's cache."""
    colocated_gpus: int
    colocated_generation_s: float
    """Published ``gen`` of the synchronous run."""

    @property
    def curve(self) -> DecodeCurve:
        """Of one engine."""
        return DecodeCurve.linear(self.floor_s, self.per_sequence_s)

    def lengths(self, run: Published) -> LogNormalLengths:
        """Of a run, by what its learner worked."""
        mean = self.mean_tokens * run.train_s * run.learner_gpus / self.train_gpu_s
        return LogNormalLengths(mean=mean, cap=self.max_tokens, sigma=self.sigma)


STREAMING = Published(
    name="7B, threshold 0",
    rollout_gpus=64,
    learner_gpus=64,
    staleness_threshold=0.0,
    step_s=231.34,
    wait_s=128.47,
    train_s=98.77,
)
THRESHOLD_01 = Published(
    name="7B, threshold 0.1",
    rollout_gpus=64,
    learner_gpus=64,
    staleness_threshold=0.1,
    step_s=171.30,
    wait_s=58.17,
    train_s=109.12,
)
THRESHOLD_03 = Published(
    name="7B, threshold 0.3",
    rollout_gpus=64,
    learner_gpus=64,
    staleness_threshold=0.3,
    step_s=146.11,
    wait_s=38.88,
    train_s=103.22,
)
TARGET = Published(
    name="7B, threshold 0.5",
    rollout_gpus=64,
    learner_gpus=64,
    staleness_threshold=0.5,
    step_s=150.63,
    wait_s=33.14,
    train_s=113.16,
)
HALF = Published(
    name="7B on 64 GPUs, threshold 0.5",
    rollout_gpus=32,
    learner_gpus=32,
    staleness_threshold=0.5,
    step_s=189.26,
    wait_s=28.46,
    train_s=156.98,
)
RUN_30B = Published(
    name="30B-A3B, threshold 0.5",
    rollout_gpus=96,
    learner_gpus=32,
    staleness_threshold=0.5,
    step_s=282.75,
    wait_s=22.06,
    train_s=206.63 + 50.05,
)

FAMILY_7B = Family(
    gpus_per_engine=4,
    max_tokens=28 * 1024,
    groups_per_update=4 * 32,
    updates_per_sync=4,
    # Calibrated: synchronous generation on 32 engines takes 177.85 s.
    floor_s=9.9e-3,
    # 15.2 GFLOP a token on four H20 at 60 % of 148 TFLOP/s are 43 us; reading the cache of 4,000
    # tokens of 57 KB (28 layers, 4 heads of 128, keys and values, 16 bit) at 80 % of 4 TB/s 18 us.
    per_sequence_s=60e-6,
    # Calibrated on thresholds 0, 0.1 and 0.3.
    mean_tokens=1700.0,
    train_gpu_s=TARGET.train_s * TARGET.learner_gpus,
    sigma=0.6,
    # Four GPUs of 96 GB at gpu_memory_utilization 0.8, less 15.2 GB of weights, over 57 KB.
    kv_tokens=5_100_000,
    colocated_gpus=128,
    colocated_generation_s=177.85,
)
FAMILY_30B = Family(
    gpus_per_engine=4,
    max_tokens=8 * 1024,
    groups_per_update=128,
    updates_per_sync=4,
    # Calibrated: synchronous generation takes 348.05 s. The launch script sets enforce_eager.
    floor_s=38.4e-3,
    # 3.3e9 active parameters, half the efficiency of a dense model: 37 us; cache of 98 KB: 31 us.
    per_sequence_s=68e-6,
    # Not published: those of the 7B run, on the same data.
    mean_tokens=1700.0,
    train_gpu_s=RUN_30B.train_s * RUN_30B.learner_gpus,
    sigma=0.6,
    kv_tokens=2_400_000,
    colocated_gpus=128,
    colocated_generation_s=348.05,
)


def colocated_generation_s(family: Family, run: Published, seed: int = 0) -> float:
    """Seconds in which all GPUs of the synchronous run generate one step, spread evenly, with
    responses as long as in ``run``."""
    rng = random.Random(seed)
    lengths = family.lengths(run)
    num_engines = family.colocated_gpus // family.gpus_per_engine
    longest_s = 0.0
    for number in range(num_engines):
        engine = ModelledEngine(str(number), family.curve, MAX_SEQUENCES, 0.0)
        for group in range(number, GROUPS_PER_STEP, num_engines):
            engine.begin(GroupKey(0, group), 1, 1, [lengths.draw(rng) for _ in range(GROUP_SIZE)])
        while (end_s := engine.next_end_s()) < math.inf:
            engine.advance(end_s)
            longest_s = max(longest_s, end_s)
    return longest_s


def run_config(groups_per_step: int, max_staleness: int) -> Config:
    """Our settings for such a run: one rule, no reference."""
    return Config.model_validate(
        {
            "run": {"name": "simulate", "steps": 10**6},
            "model": {"path": "none"},
            "data": {"train": []},
            "principles": {"rule": {"verifier": "rewards.exact:ExactMatch"}},
            "routes": {"math": {"rule": 1.0}},
            "rollout": {"group_size": GROUP_SIZE, "group_deadline_s": 1e6},
            "schedule": {"groups_per_step": groups_per_step, "max_staleness": max_staleness},
        }
    )


def run_model(family: Family, run: Published, versions_per_step: int = 1) -> RunModel:
    """A published run's machines and work. What the tables leave over of a step is spread over its
    versions; verl's own table has 0.02 to 0.12 s for the weights of the 7B model alone."""
    sync_s = run.sync_s / versions_per_step
    lengths = family.lengths(run)
    step_tokens = GROUPS_PER_STEP * GROUP_SIZE * lengths.mean
    return RunModel(
        engines=(
            EngineModel(
                name="h20",
                count=run.rollout_gpus // family.gpus_per_engine,
                curve=family.curve,
                max_sequences=MAX_SEQUENCES,
                kv_tokens=family.kv_tokens,
                gpus=family.gpus_per_engine,
                load_pause_s=sync_s,
            ),
        ),
        lengths=lengths,
        learner=LearnerModel(
            gpus=run.learner_gpus,
            seconds_per_token=run.train_s / step_tokens,
            publish_s=sync_s,
        ),
        verifiers=LatencyModel(actors=8, calls_per_actor=16, median_s=1.0),
    )


def play_verl(family: Family, run: Published, steps: int, seed: int = 0) -> PerformanceReport:
    """A published run under verl's own policy. ``steps`` are the tables' steps; so are those of
    the report, but for staleness, which is counted in updates."""
    per_step = family.updates_per_sync
    settings = VerlSettings(
        groups_per_update=family.groups_per_update,
        updates_per_sync=per_step,
        staleness_threshold=run.staleness_threshold,
    )
    policy = VerlPolicy(settings, NumberedPrompts("math"), GROUP_SIZE)
    config = run_config(family.groups_per_update, max_staleness=0)
    return simulate_performance(
        config,
        run_model(family, run),
        policy,
        steps=steps * per_step,
        warmup_steps=3 * per_step,
        seed=seed,
    )


def play_ours(
    family: Family, run: Published, max_staleness: int, steps: int, seed: int = 0
) -> PerformanceReport:
    """The same machines and work under our coordinator: a version for each of verl's updates, with
    its share of what the tables leave over. Concurrency is not set: it follows from the engines'
    cache. ``steps`` are the tables' steps; those of the report are versions."""
    config = run_config(family.groups_per_update, max_staleness)
    coordinator = Coordinator(config, NumberedPrompts("math"), fence=1)
    per_step = family.updates_per_sync
    model = run_model(family, run, versions_per_step=per_step)
    return simulate_performance(
        config, model, coordinator, steps=steps * per_step, warmup_steps=3 * per_step, seed=seed
    )
