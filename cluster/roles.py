"""Builds each role inside the process that will be it: the only place that knows which engine,
verifier or scorer a config means. Imports stand inside the functions, so that a verifier actor
never loads a model library."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zlib import crc32

from safeladder.config import Config, ModelConfig, PrincipleConfig, RolloutConfig, WeightsConfig
from safeladder.errors import ConfigError
from safeladder.ports import Dialogues, PayloadStore, RolloutEngine, Verifier

if TYPE_CHECKING:
    from actors.reference import ReferenceActor
    from actors.rollout import RolloutActor
    from actors.verifier import VerifierActor
    from actors.vllm_direct import DirectTransfer
    from cluster.monitor import Monitor
    from cluster.role_host import RayPeer
    from learners.learner import Learner


def build_rollout(
    *, store: PayloadStore, name: str, config: Config, fleet: str, learner: RayPeer | None = None
) -> RolloutActor:
    """A rollout actor with the engine that its fleet asks for. ``learner`` is the rank that sends
    versions, if they go from GPU to GPU."""
    from actors.rollout import RolloutActor
    from actors.weight_intake import WeightIntake

    rollout = config.engine_fleets[fleet].rollout
    measures = rollout.profile and not config.run.deterministic
    tokens = rollout.max_new_tokens if measures else None
    if learner is None:
        engine = _engine(name, config, rollout)
        intake = WeightIntake(store, delta=config.weights.delta)
        talk = _dialogues(engine, config, rollout)
        return RolloutActor(
            name, engine, store, profile_tokens=tokens, intake=intake, dialogues=talk
        )
    from actors.vllm_direct import DirectRolloutActor, DirectTransfer
    from cluster.role_host import RayLink

    weights = config.weights
    direct = DirectTransfer(RayLink(learner), name, weights.transport, weights.transfer_deadline_s)
    engine = _engine(name, config, rollout, direct)
    talk = _dialogues(engine, config, rollout)
    return DirectRolloutActor(
        name, engine, store, profile_tokens=tokens, intake=direct, dialogues=talk
    )


def _dialogues(engine: RolloutEngine, config: Config, rollout: RolloutConfig) -> Dialogues | None:
    if rollout.environment is None:
        return None
    from actors.deliberation.building import build_environment
    from actors.deliberation.dialogues import EnvironmentDialogues
    from actors.rendering import PromptRenderer

    return EnvironmentDialogues(
        engine,
        build_environment(config),
        rollout.environment,
        lambda: PromptRenderer.from_config(config.model),
    )


def _engine(
    name: str, config: Config, rollout: RolloutConfig, direct: DirectTransfer | None = None
) -> RolloutEngine:
    seed = config.run.seed
    if rollout.engine == "vllm":
        # Of its own for every actor, replacements included: equal seeds draw equal samples.
        seed = crc32(f"{seed}/{name}".encode())
    return build_engine(config.model, rollout, seed, config.weights, direct)


def build_engine(
    model: ModelConfig,
    rollout: RolloutConfig,
    seed: int,
    weights: WeightsConfig = WeightsConfig(),  # noqa: B008 - frozen
    direct: DirectTransfer | None = None,
) -> RolloutEngine:
    """The engine that ``rollout`` names, not started yet."""
    if rollout.engine == "vllm":
        from actors.vllm_engine import VllmEngine

        return VllmEngine(model, rollout, seed, weights.chunk_bytes, direct)
    from actors.transformers_engine import TransformersEngine

    return TransformersEngine(model, rollout, seed)


def build_verifier_role(
    *, store: PayloadStore, name: str, principle: str, config: PrincipleConfig
) -> VerifierActor:
    """A verifier actor: the rule or judge itself, or the client of a service."""
    from actors.verifier import VerifierActor

    return VerifierActor(
        name, principle, local_or_remote(principle, config), store, config.timeout_s
    )


def local_or_remote(principle: str, config: PrincipleConfig) -> Verifier:
    """The verifier port of a principle: in this process, or behind gRPC."""
    if config.service is None:
        from rewards.building import build_verifier

        return build_verifier(principle, config)
    if config.service.address is None:
        raise ConfigError(
            f"principles.{principle}.service: `spawn: true` was not resolved to an address"
        )
    from cluster.verifier_client import GrpcVerifier

    return GrpcVerifier(
        principle,
        config.service.address,
        config.timeout_s,
        token_file=config.service.token_file,
        tls=config.service.tls,
        insecure=config.service.insecure,
    )


def build_reference(
    *, store: PayloadStore, name: str, config: Config, model_path: Path
) -> ReferenceActor:
    """A reference actor: the policy as it was before RL."""
    from actors.reference import ReferenceActor, TransformersScorer

    scorer = TransformersScorer(
        model_path,
        dtype=config.model.dtype,
        batch_tokens=config.reference.batch_tokens,
        threads=config.placement.threads_per_actor,
        device="cuda" if config.reference.num_gpus else "cpu",
    )
    return ReferenceActor(name, scorer, store, config.rollout.temperature)


def build_learner(*, store: PayloadStore, rank: int, config: Config) -> Learner:
    """One DeepSpeed rank."""
    from cluster.remote import node_address
    from learners.learner import Learner

    sender = None
    if config.weights.transport != "object_store" and rank == 0:
        from actors.vllm_sender import build_sender

        weights = config.weights
        sender = build_sender(store, weights.transport, node_address(), weights.transfer_deadline_s)
    return Learner(rank, config.learner.ranks, config, store, node_address(), sender)


def build_monitor(**arguments: Any) -> Monitor:
    """The writer of metrics."""
    from cluster.monitor import Monitor

    return Monitor(**arguments)


@dataclass(frozen=True, slots=True, kw_only=True)
class Builders:
    """What makes each role of a crew; verifiers are named by the config. Benchmarks put timed roles
    in the place of real ones."""

    rollout: Callable[..., Any] = build_rollout
    reference: Callable[..., Any] = build_reference
    learner: Callable[..., Any] = build_learner
