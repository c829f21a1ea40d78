"""Everything that can be known to be wrong before anything is started.

``preflight`` is run by ``safeladder check`` and before every run: model, dtype, data, verifiers,
addresses, disk. It starts no actor and loads no model. Each problem is one ``SafeladderError`` that
names the thing and the way out. Whether the run directory is free is ``run_directory``'s business.
"""

from __future__ import annotations

import asyncio
import difflib
import socket
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from cluster.model_folder import ModelFolder, read_model_folder
from cluster.placement import job_address
from cluster.roles import local_or_remote
from cluster.run_directory import require_free_disk
from curricula.prompts import load_prompts, read_rows
from learners.preconditions import require_trainable
from rewards.deadline import close_with_deadline, score_with_deadline, start_with_deadline
from safeladder.config import Config, PrincipleConfig
from safeladder.errors import (
    ConfigError,
    DataError,
    EnvironmentUnfitError,
    VerifierUnavailableError,
)
from safeladder.ports import Verifier
from safeladder.records import Prompt, ScoreRequest, Verdict, VerdictStatus

REACH_DEADLINE_S = 10.0
"""Longest wait for a verifier service or a Ray cluster to answer at start."""
SAMPLES = 3
SAMPLE_RESPONSE = "This is a sample response."
CPU_FLAGS = {
    "bfloat16": frozenset({"avx512_bf16", "amx_bf16", "bf16"}),
    "float16": frozenset({"avx512_fp16", "amx_fp16", "asimdhp"}),
}
"""Processor flags that make a dtype usable without a GPU (x86 and Arm names)."""


@dataclass(frozen=True, slots=True)
class SampleVerdict:
    """What the verifier of a principle said about one sample row."""

    prompt_id: str
    response: str
    verdict: Verdict


def preflight(config: Config) -> None:
    """Check all that a run needs, cheapest first. Call it outside any event loop.

    Raises ``ConfigError``, ``DataError``, ``EnvironmentUnfitError`` or
    ``VerifierUnavailableError``.
    """
    check_routes(config)
    model = read_model_folder(config.model.path)
    check_layers(config, model)
    check_dtype(config, processor_flags())
    require_trainable(config)
    check_cluster(config)
    check_gpus(config)
    check_data(config)
    for principle, settings in config.principles.items():
        check_verifier(principle, settings)
    asyncio.run(check_services(config))
    require_free_disk(config.run.directory, required_disk_bytes(config, model))


def check_routes(config: Config) -> None:
    """Refuse a route that nobody judges, and a principle that judges no route: a misspelled name
    would otherwise be a new principle without effect. Raises ``ConfigError``."""
    for route, weights in config.routes.items():
        if not weights:
            raise ConfigError(
                f"routes.{route} names no principle; give it one, such as "
                f"{{{next(iter(config.principles), 'safety')}: 1.0}}"
            )
    used = {principle for weights in config.routes.values() for principle in weights}
    for principle in config.principles:
        if principle not in used:
            close = difflib.get_close_matches(principle, used, n=1)
            hint = f"did you mean {close[0]}?" if close else "add it to a route or take it away"
            raise ConfigError(f"principles.{principle} is in no route, so it does nothing; {hint}")


def check_layers(config: Config, model: ModelFolder) -> None:
    """Refuse to train more layers than the model has. Raises ``ConfigError``."""
    wanted, there = config.learner.train_last_layers, len(model.parameters_by_layer)
    if wanted is not None and 0 < there < wanted:
        raise ConfigError(
            f"learner.train_last_layers {wanted}: the model has {there} layers; give at most that, "
            "or null to train everything"
        )


def check_cluster(config: Config) -> None:
    """Refuse the address of a Ray cluster that does not answer; Ray itself would try for minutes.

    Raises ``ConfigError`` or ``EnvironmentUnfitError``.
    """
    address = config.placement.address or job_address()
    if address is None or address == "auto":
        return
    key = "placement.address" if config.placement.address else "RAY_ADDRESS"
    host, _, port = address.rpartition(":")
    if not host or "/" in host or not port.isdecimal():
        raise ConfigError(
            f"{key} {address!r} is no host:port of a Ray head, such as 10.0.0.1:6379; correct it, "
            "or leave it out for a local Ray"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_DEADLINE_S).close()
    except (OSError, OverflowError) as error:
        raise EnvironmentUnfitError(
            f"{key}: no Ray cluster answers at {address} ({error}); start one, correct the "
            "address, or leave it out for a local Ray"
        ) from None


def check_dtype(config: Config, flags: Collection[str]) -> None:
    """Refuse a half-precision dtype for a role without GPU on a processor that lacks it."""
    dtype = config.model.dtype
    without_gpu = [name for name, gpus in _gpus(config).items() if gpus == 0]
    if dtype in CPU_FLAGS and without_gpu and not CPU_FLAGS[dtype] & set(flags):
        raise EnvironmentUnfitError(
            f"model.dtype {dtype}: {', '.join(without_gpu)} would run on the processor, which has "
            f"no {dtype} units; set model.dtype to float32, or give "
            f"{' and '.join(f'{name}.num_gpus' for name in without_gpu)}"
        )


def check_gpus(config: Config) -> None:
    """Refuse GPUs that this machine lacks. A run on a Ray cluster elsewhere is not judged here."""
    wanting = [name for name, gpus in _gpus(config).items() if gpus > 0]
    if not wanting or config.placement.address or job_address():
        return
    import torch

    keys = " and ".join(f"{name}.num_gpus" for name in wanting)
    if not torch.cuda.is_available():
        raise EnvironmentUnfitError(
            f"{keys}: this machine has no GPU that PyTorch can use; set it to 0, or set "
            "placement.address to a cluster with GPUs"
        )
    if config.model.dtype == "bfloat16" and not torch.cuda.is_bf16_supported(False):
        raise EnvironmentUnfitError(
            f"model.dtype bfloat16: {torch.cuda.get_device_name()} has no bfloat16 units; set "
            "model.dtype to float16 or float32"
        )


def check_data(config: Config) -> list[Prompt]:
    """Read every data file; returns the training prompts, at least one."""
    if not config.data.train:
        raise ConfigError("data.train names no file; list the prompt files to train on")
    prompts = load_prompts(config.data.train, config.routes, config.model.system_prompt)
    load_prompts(config.data.held_out, config.routes, config.model.system_prompt)
    for path in config.sft.data if config.sft else ():
        for place, row in read_rows(path):
            if row.get("prompt") is None or not isinstance(row.get("response"), str):
                raise DataError(f"{place}: column prompt or response is missing; give both as text")
    return prompts


def check_verifier(principle: str, settings: PrincipleConfig) -> None:
    """Import and construct the verifier, if this side has one. Raises ``ConfigError``."""
    if settings.verifier is not None:
        local_or_remote(principle, _in_process(settings))
    token = settings.service.token_file if settings.service else None
    if token is not None and not token.is_file():
        raise ConfigError(f"principles.{principle}.service.token_file: there is no file {token}")


async def check_services(config: Config) -> None:
    """Reach every service that has an address. Raises ``VerifierUnavailableError``."""
    await asyncio.gather(
        *(
            _reach(principle, local_or_remote(principle, settings), settings)
            for principle, settings in config.principles.items()
            if settings.service is not None and settings.service.address is not None
        )
    )


async def score_samples(
    config: Config, prompts: Sequence[Prompt]
) -> dict[str, list[SampleVerdict]]:
    """Principle → verdicts on its first three rows, each answered by its own reference.

    A verifier whose service the run would spawn is asked in this process. Raises
    ``VerifierUnavailableError`` if a principle has no verdict but INVALID ones.
    """
    scored = {}
    for principle, settings in config.principles.items():
        if rows := _rows_of(principle, config, prompts):
            scored[principle] = await _score(principle, settings, rows, config)
    for principle, samples in scored.items():
        if all(sample.verdict.status is VerdictStatus.INVALID for sample in samples):
            verdict = samples[0].verdict
            raise VerifierUnavailableError(
                f"principles.{principle}: all sample rows are INVALID({verdict.cause}): "
                f"{verdict.evidence or 'no reason given'}"
            )
    return scored


def required_disk_bytes(config: Config, model: ModelFolder) -> int:
    """Space of all checkpoints kept and of the one being written: weights in the model's dtype,
    and 12 bytes (float32 master and the two Adam moments) for each trained parameter."""
    trained = model.num_trainable(config.learner.train_last_layers)
    width = 4 if config.model.dtype == "float32" else 2
    return (config.checkpoint.keep + 1) * (width * model.num_parameters + 12 * trained)


def processor_flags() -> frozenset[str]:
    """Feature flags of the first core; empty where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _gpus(config: Config) -> dict[str, float]:
    """Section → GPUs of each of its actors, for the roles that hold the model."""
    sections = {"rollout": config.rollout.num_gpus, "learner": config.learner.num_gpus}
    if config.reference.enabled:
        sections["reference"] = config.reference.num_gpus
    return sections


def _in_process(settings: PrincipleConfig) -> PrincipleConfig:
    return settings.model_copy(update={"service": None})


def _rows_of(principle: str, config: Config, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Three prompts that the principle judges, taken in turn from its routes."""
    routes = [route for route, weights in config.routes.items() if principle in weights]
    by_route = ([p for p in prompts if p.route == route][:SAMPLES] for route in routes)
    in_turn = [p for row in zip_longest(*by_route) for p in row if p is not None]
    return in_turn[:SAMPLES]


async def _reach(principle: str, verifier: Verifier, settings: PrincipleConfig) -> None:
    address = settings.service.address if settings.service else None
    try:
        await asyncio.wait_for(verifier.start(), REACH_DEADLINE_S)
    except TimeoutError:
        raise VerifierUnavailableError(
            f"principles.{principle}.service: {address} did not answer within "
            f"{REACH_DEADLINE_S:.0f} s; start it with `safeladder serve-verifier`"
        ) from None
    finally:
        await verifier.close()


async def _score(
    principle: str, settings: PrincipleConfig, rows: Sequence[Prompt], config: Config
) -> list[SampleVerdict]:
    is_remote = settings.service is not None and settings.service.address is not None
    verifier = local_or_remote(principle, settings if is_remote else _in_process(settings))
    requests = [
        ScoreRequest(
            sample_id=f"check/{i}/0",
            attempt=1,
            messages=prompt.messages,
            response=(response := prompt.reference or SAMPLE_RESPONSE),
            finish_reason="stop",
            num_tokens=len(response.split()),
            route=prompt.route,
            reference=prompt.reference,
            lang=prompt.lang,
            meta=prompt.meta,
        )
        for i, prompt in enumerate(rows)
    ]
    try:
        await start_with_deadline(verifier, config.placement.start_deadline_s, principle=principle)
        verdicts = await score_with_deadline(
            verifier, requests, settings.timeout_s * len(rows), principle=principle
        )
    finally:
        await close_with_deadline(verifier, principle=principle)
    return [
        SampleVerdict(prompt.id, request.response, verdict)
        for prompt, request, verdict in zip(rows, requests, verdicts, strict=True)
    ]
