"""Everything that can be known to be wrong before anything is started.

``preflight`` is run by ``safeladder check`` and before every run: model, machine, data, verifiers,
addresses. It starts no actor and loads no model. Each problem is one ``SafeladderError`` that
names the thing and the way out. Whether the run directory is free is ``run_directory``'s business.
"""

from __future__ import annotations

import asyncio
import difflib
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

from cluster.canaries import Canary, canaries_of, faults_of, first_round, requests_of
from cluster.cluster_room import check_room
from cluster.data_checks import check_data
from cluster.environment_checks import check_environment
from cluster.host_checks import check_host
from cluster.model_checks import check_model
from cluster.model_folder import read_model_folder
from cluster.placement import job_address
from cluster.roles import local_or_remote
from learners.preconditions import require_trainable
from rewards.adapters.function import FunctionVerifier
from rewards.deadline import close_with_deadline, score_with_deadline, start_with_deadline
from safeladder.config import Config, EvaluationConfig, PrincipleConfig
from safeladder.errors import (
    ConfigError,
    EnvironmentUnfitError,
    VerifierUnavailableError,
)
from safeladder.ports import Verifier
from safeladder.records import Prompt, ScoreRequest, Verdict, VerdictStatus
from vision.reading import read_image, without_marks

REACH_DEADLINE_S = 10.0
"""Longest wait for a verifier service or a Ray cluster to answer at start."""
SAMPLES = 3
SAMPLE_RESPONSE = "This is a sample response."


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
    check_evaluation(config)
    model = read_model_folder(config.model.path)
    check_model(config, model)
    require_trainable(config)
    check_cluster(config)
    check_host(config, model)
    check_room(config)
    check_data(config)
    check_environment(config)
    canaries_of(config)
    for principle, settings in config.principles.items():
        check_verifier(principle, settings)
    asyncio.run(check_services(config))


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
    used |= {probe.principle for probe in config.probes.sets.values()}
    for principle in config.principles:
        if principle not in used:
            close = difflib.get_close_matches(principle, used, n=1)
            hint = f"did you mean {close[0]}?" if close else "add it to a route or take it away"
            raise ConfigError(f"principles.{principle} is in no route, so it does nothing; {hint}")


def check_evaluation(config: Config) -> None:
    """Refuse to measure by a principle that is none. A default may be none: a run without that
    principle goes without its rate. Raises ``ConfigError``."""
    if not config.data.held_out:
        return
    for key in ("safety_principle", "correctness_principle"):
        name, default = getattr(config.evaluation, key), EvaluationConfig.model_fields[key].default
        if name != default and name not in config.principles:
            raise ConfigError(
                f"evaluation.{key} names {name!r}, which is not in `principles` "
                f"({', '.join(sorted(config.principles))})"
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
    is_port = port.isascii() and port.isdecimal() and 1 <= int(port[:6]) <= 65535
    if not host or "/" in host or not is_port:
        raise ConfigError(
            f"{key} {address!r} is no host:port of a Ray head, such as 10.0.0.1:6379; correct it, "
            "or leave it out for a local Ray"
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), REACH_DEADLINE_S).close()
    except (OSError, ValueError) as error:  # a host that no name can be is a ValueError
        raise EnvironmentUnfitError(
            f"{key}: no Ray cluster answers at {address} ({error}); start one, correct the "
            "address, or leave it out for a local Ray"
        ) from None


def check_verifier(principle: str, settings: PrincipleConfig) -> None:
    """Import and construct the verifier, if this side has one. Raises ``ConfigError``."""
    if settings.verifier is not None:
        local_or_remote(principle, _in_process(settings))
    token = settings.service.token_file if settings.service else None
    if token is not None and not token.is_file():
        raise ConfigError(f"principles.{principle}.service.token_file: there is no file {token}")


def built_version(principle: str, settings: PrincipleConfig) -> str | None:
    """Version of the verifier that the run would build now; None for a service that somebody else
    has started. Raises ``ConfigError``."""
    is_foreign = settings.service is not None and settings.service.address is not None
    if settings.verifier is None or is_foreign:
        return None
    return local_or_remote(principle, _in_process(settings)).version


async def check_services(config: Config) -> None:
    """Reach every service that has an address, and import every reward function in its sandbox.

    Raises ``ConfigError`` or ``VerifierUnavailableError``.
    """
    tries = []
    for principle, settings in config.principles.items():
        if settings.service is not None and settings.service.address is not None:
            tries.append(_reach(principle, local_or_remote(principle, settings), settings))
        elif isinstance(
            verifier := local_or_remote(principle, _in_process(settings)), FunctionVerifier
        ):
            tries.append(_import(principle, verifier))
    await asyncio.gather(*tries)


async def score_samples(
    config: Config, prompts: Sequence[Prompt]
) -> dict[str, list[SampleVerdict]]:
    """Principle → verdicts on its first three rows, each answered by its own reference.

    Canaries are asked too. A verifier whose service the run would spawn is asked in this process.
    Raises ``VerifierUnavailableError`` if a principle has no verdict but INVALID ones, or is wrong
    on a canary.
    """
    scored: dict[str, list[SampleVerdict]] = {}
    canaries = canaries_of(config)
    for principle, settings in config.principles.items():
        rows, known = _rows_of(principle, config, prompts), canaries.get(principle, [])
        if rows or known:
            samples = await _score(principle, settings, rows, known, config)
            scored |= {principle: samples} if rows else {}
    for principle, samples in scored.items():
        if all(sample.verdict.status is VerdictStatus.INVALID for sample in samples):
            verdict = samples[0].verdict
            raise VerifierUnavailableError(
                f"principles.{principle}: all sample rows are INVALID({verdict.cause}): "
                f"{verdict.evidence or 'no reason given'}"
            )
    return scored


def _in_process(settings: PrincipleConfig) -> PrincipleConfig:
    return settings.model_copy(update={"service": None})


def _rows_of(principle: str, config: Config, prompts: Sequence[Prompt]) -> list[Prompt]:
    """Three prompts that the principle judges, taken in turn from its routes."""
    routes = [route for route, weights in config.routes.items() if principle in weights]
    by_route = ([p for p in prompts if p.route == route][:SAMPLES] for route in routes)
    in_turn = [p for row in zip_longest(*by_route) for p in row if p is not None]
    return in_turn[:SAMPLES]


def require_right(principle: str, canaries: Sequence[Canary], said: Sequence[Verdict]) -> None:
    """Raise ``VerifierUnavailableError`` unless the verifier is right on all canaries."""
    if faults := faults_of(canaries, said):
        raise VerifierUnavailableError(
            f"principles.{principle}.canaries: wrong on {len(faults)} of {len(canaries)}: "
            f"{'; '.join(faults[:3])}"
        )


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


async def _import(principle: str, verifier: FunctionVerifier) -> None:
    try:
        await start_with_deadline(verifier, principle=principle)
    finally:
        await close_with_deadline(verifier, principle=principle)


async def _score(
    principle: str,
    settings: PrincipleConfig,
    rows: Sequence[Prompt],
    canaries: Sequence[Canary],
    config: Config,
) -> list[SampleVerdict]:
    is_remote = settings.service is not None and settings.service.address is not None
    verifier = local_or_remote(principle, settings if is_remote else _in_process(settings))
    requests = [
        ScoreRequest(
            sample_id=f"check/{i}/0",
            attempt=1,
            messages=without_marks(prompt),
            response=(response := prompt.reference or SAMPLE_RESPONSE),
            finish_reason="stop",
            num_tokens=len(response.split()),
            route=prompt.route,
            reference=prompt.reference,
            lang=prompt.lang,
            images=tuple(read_image(path) for path in prompt.images),
            meta=prompt.meta,
        )
        for i, prompt in enumerate(rows)
    ]
    try:
        await start_with_deadline(verifier, config.placement.start_deadline_s, principle=principle)
        verdicts = await score_with_deadline(
            verifier, requests, settings.timeout_s * len(rows), principle=principle
        )
        if canaries:
            asked = requests_of(canaries, first_round())
            said = await score_with_deadline(
                verifier, asked, settings.timeout_s * len(asked), principle=principle
            )
            require_right(principle, canaries, said)
    finally:
        await close_with_deadline(verifier, principle=principle)
    return [
        SampleVerdict(prompt.id, request.response, verdict)
        for prompt, request, verdict in zip(rows, requests, verdicts, strict=True)
    ]
