"""The one schema of a run: YAML in, frozen models out. Unknown keys are refused.

Users choose few numbers; what follows from them is a property with its formula. How files and
overrides are merged stands in ``config_loading``; this module imports nothing heavy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from safeladder.config_section import (
    Flag,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    PositiveShare,
)
from safeladder.config_section import Name as Name
from safeladder.config_section import Section as Section
from safeladder.config_section import Share as Share
from safeladder.config_section import Weight as Weight
from safeladder.constraint_config import ConstraintConfig as ConstraintConfig
from safeladder.constraint_config import constraint_fault
from safeladder.curriculum_config import CurriculumConfig as CurriculumConfig
from safeladder.data_config import DataConfig as DataConfig
from safeladder.data_config import SourceConfig as SourceConfig
from safeladder.fleet_config import EngineFleet as EngineFleet
from safeladder.fleet_config import FleetConfig as FleetConfig
from safeladder.fleet_config import engine_fleets
from safeladder.learner_config import LearnerConfig as LearnerConfig
from safeladder.lora_config import LoraConfig as LoraConfig
from safeladder.objective_config import ObjectiveConfig as ObjectiveConfig
from safeladder.objective_profiles import with_reference_of_profile
from safeladder.probe_config import ExitConfig as ExitConfig
from safeladder.probe_config import ProbesConfig as ProbesConfig
from safeladder.probe_config import TripwireConfig as TripwireConfig
from safeladder.probe_config import require_probes, require_room_to_roll_back
from safeladder.rollout_config import RolloutConfig as RolloutConfig
from safeladder.rollout_config import VllmConfig as VllmConfig
from safeladder.service_config import ServiceConfig as ServiceConfig
from safeladder.service_config import TlsConfig as TlsConfig
from safeladder.stage_config import PreferenceConfig as PreferenceConfig
from safeladder.stage_config import RowsConfig as RowsConfig
from safeladder.stage_config import SelectionConfig as SelectionConfig
from safeladder.stage_config import SftConfig as SftConfig
from safeladder.stage_config import Stage as Stage
from safeladder.stage_config import ValueModelConfig as ValueModelConfig
from safeladder.surroundings_config import CheckpointConfig as CheckpointConfig
from safeladder.surroundings_config import MonitorConfig as MonitorConfig
from safeladder.surroundings_config import PlacementConfig as PlacementConfig
from safeladder.weights_config import WeightsConfig as WeightsConfig


class RunConfig(Section):
    """Identity, length and seed of a run."""

    name: Name
    """Folder of the run below ``root``."""
    root: Path = Path("runs")
    """Where runs live."""
    steps: NonNegativeInt
    """Optimizer steps to train, at least 1. A ``stage`` other than ``rl`` needs no such key: it
    ends after its epochs, or after so many steps if that is sooner (0: never)."""
    seed: NonNegativeInt = 0
    """Seeds the order of the data and, in deterministic mode, every sample."""
    deterministic: Flag = False
    """Same config, same losses bit for bit. Needs the transformers engine, one rollout actor and
    ``schedule.max_staleness: 0``."""

    @property
    def directory(self) -> Path:
        """``root / name``."""
        return self.root / self.name


class ModelConfig(Section):
    """The model that is trained, and how prompts are rendered for it."""

    path: Path
    """Folder in Hugging Face layout (config.json, safetensors, tokenizer)."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Of policy and reference; the learner keeps float32 masters."""
    system_prompt: str | None = None
    """Put before every prompt that has no system turn of its own."""
    chat_template: str | None = None
    """Jinja template instead of the tokenizer's own."""
    image_min_pixels: PositiveInt | None = None
    """Images are enlarged to at least so many pixels; null leaves it to the model's own image
    processor. 784 pixels are one token of Qwen2.5-VL."""
    image_max_pixels: PositiveInt | None = None
    """Images are reduced to at most so many pixels; null leaves it to the model's own."""


class PrincipleConfig(Section):
    """One principle: who judges it, where, and what a failure does."""

    verifier: str | None = None
    """``module:Class`` of a verifier; not needed if a service at ``service.address`` decides."""
    options: dict[str, Any] = Field(default={})
    """Keyword arguments of the verifier."""
    service: ServiceConfig | None = None
    """Score over gRPC instead of inside the verifier actor."""
    actors: PositiveInt = 1
    """Verifier actors of this principle."""
    timeout_s: PositiveFloat = 30.0
    """A score that takes longer is INVALID(timeout)."""
    on_invalid: Literal["retry", "drop_sample", "drop_group", "pause", "fail"] = "retry"
    """What an INVALID verdict does. ``retry`` asks again, then drops the group."""
    max_retries: NonNegativeInt = 2
    """Further tries under ``retry``."""
    canaries: Path | None = None
    """JSON lines of answers whose verdicts are known; a new verifier takes over only if it is right
    on all of them, and is asked again during the run."""
    canary_every_s: PositiveFloat = 300.0
    """Time between two rounds of canaries."""

    @model_validator(mode="after")
    def _has_a_judge(self) -> Self:
        if self.verifier is None and (self.service is None or self.service.address is None):
            raise ValueError("name a `verifier: module:Class` or a `service.address`")
        return self


class BreakerConfig(Section):
    """When a failing verifier stops training instead of costing groups.

    A sample counts once, by the first verdict on it. While the breaker is open, groups with INVALID
    verdicts wait; they are asked for again every 5 s, and beside them a probe: a sample that the
    verifier has judged well before. The breaker closes when the probe is judged well again, or when
    a call made since it opened brings nothing INVALID. The groups are then asked for once more, and
    what is still INVALID is treated by ``on_invalid``: it was the sample, not the verifier. On
    closing, the INVALID verdicts in the window are forgotten and the valid ones stay, so that a
    verifier that fails again is noticed as soon as the share is too large again.
    """

    window: PositiveInt = 256
    """Newest verdicts of a principle that are looked at."""
    max_invalid_share: PositiveShare = 0.05
    """A larger share of INVALID verdicts among them pauses training and alerts. 1 never pauses."""
    min_verdicts: PositiveInt = 64
    """Nothing is concluded from fewer verdicts."""


class RewardConfig(Section):
    """How verdicts become one scalar."""

    combine: Literal["additive", "worst_case", "decoupled"] = "additive"
    """``additive``: R = sum of weight x score over the principles of the route; ``worst_case``: the
    lowest score; ``decoupled``: the weighted sum of z-scores among siblings (GDPO)."""
    gates: tuple[Name, ...] = ()
    """Principles that multiply the reward of the others instead of adding to it, such as format."""
    gates_earn: Flag = False
    """Gates also add weight x score of their own within the product (``combine: additive``)."""
    floors: dict[Name, Share] = Field(default={})
    """Principle → lowest score it accepts; a sample below one earns less than any above all."""
    breaker: BreakerConfig = BreakerConfig()
    filter_zero_variance: Flag = True
    """Drop groups whose siblings all earn the same reward: they carry no gradient."""

    @model_validator(mode="after")
    def _fits_the_rule(self) -> Self:
        if twice := sorted({name for name in self.gates if self.gates.count(name) > 1}):
            raise ValueError(f"gates names {twice[0]!r} twice, which counts once; remove one")
        if both := sorted(set(self.gates) & set(self.floors)):
            raise ValueError(f"{both[0]} is a gate and has a floor; choose one")
        if self.gates_earn and (self.combine != "additive" or not self.gates):
            raise ValueError("gates_earn needs combine: additive and at least one of `gates`")
        if self.combine == "decoupled" and self.floors:
            raise ValueError("combine: decoupled has no floors, since its scores are relative")
        return self


class ReferenceConfig(Section):
    """The frozen policy and its KL term."""

    kl_coefficient: NonNegativeFloat = 0.0
    """Weight of the KL to the frozen policy that RL started from; 0 starts no reference actor
    unless ``always`` is set."""
    always: Flag = False
    """Compute reference log-probs for the KL metric even with coefficient 0."""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """k1 = log-ratio, k2 = half its square, k3 = ratio - 1 - log-ratio (Schulman 2020)."""
    actors: PositiveInt = 1
    """Replicas of the frozen policy."""
    batch_tokens: PositiveInt = 4096
    """Token budget of one forward pass."""
    num_gpus: NonNegativeFloat = 0.0
    """GPUs reserved for each actor."""
    num_cpus: NonNegativeFloat = 1.0
    """Cores reserved for each actor."""

    @property
    def enabled(self) -> bool:
        """Whether groups need reference log-probs before they count as SCORED."""
        return self.kl_coefficient > 0 or self.always


class ScheduleConfig(Section):
    """How asynchronous the run is."""

    groups_per_step: PositiveInt = 16
    """Prompt groups in one optimizer step, and so in one policy version."""
    max_staleness: NonNegativeInt = 1
    """Bound on learner version - oldest token version. 0 is synchronous training."""

    def admission_limit(self, served_version: int) -> int:
        """Groups that may have been leased since version 0 while an engine serves
        ``served_version``: (served_version + max_staleness + 1) * groups_per_step
        (AReaL's inequality)."""
        return (served_version + self.max_staleness + 1) * self.groups_per_step


class EvaluationConfig(Section):
    """Greedy evaluation on the held-out prompts."""

    max_new_tokens: PositiveInt = 64
    """Length limit of the greedy answers before and after."""
    batch_size: PositiveInt = 32
    """Prompts decoded together."""
    safety_principle: Name = "safety"
    """Principle whose verdicts give ``safe_rate_optimised``."""
    correctness_principle: Name = "rule"
    """Principle whose verdicts give ``correct_rate``."""


class Config(Section):
    """The whole run."""

    stage: Stage = "rl"
    """What the run trains: a policy by RL, one on demonstrations (``sft``), one on pairs of answers
    (``preference``), or a value model. All but ``rl`` need neither ``run.steps`` nor ``data``,
    ``principles`` and ``routes``; held-out prompts are answered before and after if given."""
    run: RunConfig
    model: ModelConfig
    data: DataConfig
    curriculum: CurriculumConfig = CurriculumConfig()
    principles: dict[Name, PrincipleConfig]
    """Principle → who judges it."""
    routes: dict[Name, dict[Name, Weight]]
    """Label of a data row → {principle: weight}, each above 0 and at most 1e6."""
    rollout: RolloutConfig = RolloutConfig()
    fleets: dict[Name, FleetConfig] = Field(default={})
    """Rollout engines of several kinds instead of ``rollout.actors`` equal ones."""
    reward: RewardConfig = RewardConfig()
    constraints: dict[Name, ConstraintConfig] = Field(default={})
    """Weights that follow how often a bound is broken (Lagrange)."""
    reference: ReferenceConfig = ReferenceConfig()
    learner: LearnerConfig = LearnerConfig()
    sft: SftConfig | None = None
    """What ``stage: sft`` trains; with ``stage: rl`` an optional supervised rung before RL."""
    preference: PreferenceConfig | None = None
    """What ``stage: preference`` trains."""
    value_model: ValueModelConfig | None = None
    """What ``stage: value_model`` trains."""
    schedule: ScheduleConfig = ScheduleConfig()
    weights: WeightsConfig = WeightsConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    monitor: MonitorConfig = MonitorConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    probes: ProbesConfig = ProbesConfig()
    tripwires: dict[Name, TripwireConfig] = Field(default={})
    """Tripwire → the probe that it watches, and what a fall leads to."""
    exit: ExitConfig = ExitConfig()
    placement: PlacementConfig = PlacementConfig()

    @model_validator(mode="before")
    @classmethod
    def _profile_prices_the_reference(cls, tree: Any) -> Any:
        return with_reference_of_profile(tree)

    @model_validator(mode="before")
    @classmethod
    def _rows_need_no_prompts(cls, tree: Any) -> Any:
        """A stage over rows of a file goes without what only RL and evaluation need."""
        if not isinstance(tree, dict) or tree.get("stage", "rl") == "rl":
            return tree
        filled = {"principles": {}, "routes": {}, "data": {}, **tree}
        if isinstance(filled["data"], dict):
            filled["data"] = {"train": (), **filled["data"]}
        if isinstance(filled.get("run"), dict):
            filled["run"] = {"steps": 0, **filled["run"]}
        return filled

    @model_validator(mode="after")
    def _stage_is_described(self) -> Self:
        if self.stage == "rl" and self.run.steps < 1:
            raise ValueError("run.steps must be at least 1 with stage: rl")
        if self.stage != "rl" and self.rows is None:
            raise ValueError(f"stage: {self.stage} needs the section `{self.stage}`; see its keys")
        return self

    @model_validator(mode="after")
    def _names_are_known(self) -> Self:
        unknown = f"not in `principles` ({', '.join(sorted(self.principles)) or 'empty'})"
        named = {
            "reward.gates": self.reward.gates,
            "reward.floors": self.reward.floors,
            "curriculum.principles": self.curriculum.principles,
        }
        for key, names in named.items():
            for principle in names:
                if principle not in self.principles:
                    raise ValueError(f"{key} names {principle!r}, which is {unknown}")
        if lost := sorted(self.data.mix.keys() - self.routes.keys()):
            raise ValueError(f"data.mix names {lost[0]!r}, which is not in `routes`")
        return self

    @model_validator(mode="after")
    def _parts_fit_together(self) -> Self:
        unknown = f"not in `principles` ({', '.join(sorted(self.principles)) or 'empty'})"
        for route, weights in self.routes.items():
            if weights and not set(weights) - set(self.reward.gates):
                raise ValueError(
                    f"routes.{route} has gates only; add a principle that earns reward"
                )
            for principle in weights:
                if principle not in self.principles:
                    raise ValueError(
                        f"routes.{route} names the principle {principle!r}, which is {unknown}"
                    )
        engines = list(self.engine_fleets.values())
        if self.run.deterministic and (
            [(fleet.rollout.engine, fleet.most_actors) for fleet in engines]
            != [("transformers", 1)]
            or self.schedule.max_staleness != 0
        ):
            raise ValueError(
                "run.deterministic needs rollout.engine: transformers, rollout.actors: 1 and "
                "schedule.max_staleness: 0"
            )
        if self.run.deterministic and (self.rollout.straggler_factor or self.rollout.oversample):
            raise ValueError(
                "run.deterministic allows neither rollout.straggler_factor nor rollout.oversample: "
                "who finishes first is chance"
            )
        return self

    @model_validator(mode="after")
    def _constraints_weigh_principles(self) -> Self:
        given = self.principles, self.routes, self.reward.gates, self.reward.combine
        if fault := constraint_fault(self.constraints, *given):
            raise ValueError(fault)
        return self

    @model_validator(mode="after")
    def _transport_fits_the_engines(self) -> Self:
        transport = self.weights.transport
        if transport == "object_store":
            return self
        if self.weights.delta:
            raise ValueError(f"weights.delta has no use with weights.transport: {transport}")
        for fleet in self.engine_fleets.values():
            if fleet.rollout.engine != "vllm":
                raise ValueError(
                    f"weights.transport: {transport} needs {fleet.key}.engine: vllm, "
                    "or set it to object_store"
                )
        return self

    @model_validator(mode="after")
    def _probes_are_there(self) -> Self:
        require_probes(self.probes, self.tripwires, self.exit, self.principles, self.stage)
        kept, staleness = self.checkpoint, self.schedule.max_staleness
        require_room_to_roll_back(
            self.probes, self.tripwires, kept.every_steps, kept.keep, staleness
        )
        return self

    @property
    def rows(self) -> RowsConfig | None:
        """The section of a ``stage`` that passes over rows; None with ``rl``."""
        sections: dict[str, RowsConfig | None] = {
            "sft": self.sft,
            "preference": self.preference,
            "value_model": self.value_model,
        }
        return sections.get(self.stage)

    @property
    def evaluates(self) -> bool:
        """Whether held-out prompts are answered: a value model answers nothing."""
        return bool(self.data.held_out) and self.stage != "value_model"

    @property
    def generates(self) -> bool:
        """Whether rollout engines and verifiers are started."""
        return self.stage == "rl" or self.evaluates

    @property
    def engine_fleets(self) -> dict[str, EngineFleet]:
        """Name → rollout fleet: those of ``fleets``, or the one that ``rollout`` describes."""
        return engine_fleets(self.fleets, self.rollout)
