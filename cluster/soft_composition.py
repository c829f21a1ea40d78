"""Preference pairs and demonstrations of soft-constraint following, from seeds (arXiv 2501.04945).

::

    seed ─▶ draw n constraint types ─▶ rewriter (soft ones) ─▶ I_0 .. I_n
                                                                 │
              pairs, SFT row ◀─ judge, both orders ◀─ writer ─ o_0 .. o_n

Every reply is kept (``reply_cache``), so that a composition that was ended goes on where it was;
results are written at the end, whole. A seed that fails costs that seed and is counted by reason.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any

from cluster.reply_cache import ReplyCache
from cluster.soft_config import SoftConfig
from cluster.soft_results import Composed, Composition, Seed
from curricula.composition import Worded, single_round
from curricula.constraint_sets import draw_constraint, draw_types
from curricula.soft_rewriter import UnusableReplyError, load_rewriter_template
from curricula.winner_chain import Step, winner_chain
from rewards.completers import Backend
from rewards.constraints.vocabulary import SOFT
from rewards.judging import UnjudgedError
from rewards.pairwise_judge import LABELS, Comparison, Outcome, compare, load_pairwise_template
from safeladder.records import Message

_STEPS = {
    Outcome.FIRST: Step.OLD,
    Outcome.SECOND: Step.NEW,
    Outcome.TIE: Step.TIE,
    Outcome.DISAGREE: Step.DISAGREE,
    Outcome.INVALID: Step.INVALID,
}


class Composer:
    """Runs the pipeline over the three models, which are started already."""

    def __init__(
        self,
        config: SoftConfig,
        cache: ReplyCache,
        backends: Mapping[str, Backend],
    ) -> None:
        self._config = config
        self._cache = cache
        self._backends = backends
        self._rewriter_template = load_rewriter_template(config.rewriter_template)
        self._judge_template = load_pairwise_template(config.judge_template)

    async def run(
        self, seeds: Sequence[Seed], tell: Callable[[int], None] = lambda done: None
    ) -> Composition:
        """All seeds, some at once; ``tell`` hears how many are done."""
        slots = asyncio.Semaphore(self._config.seeds_at_once)
        result, done = Composition(), 0

        async def one(seed: Seed) -> Composed | str:
            nonlocal done
            async with slots:
                try:
                    return await self._compose(seed, result.refused)
                except UnjudgedError as error:
                    return f"{error.cause}: {error}"
                finally:
                    done += 1
                    tell(done)

        for seed, found in zip(seeds, await asyncio.gather(*map(one, seeds)), strict=True):
            if isinstance(found, Composed):
                result.composed.append(found)
            else:
                result.failed.append((seed, found))
        return result

    async def _compose(self, seed: Seed, refused: Counter[str]) -> Composed | str:
        rng = random.Random(f"{self._config.seed}/{seed.id}")
        drawn = [
            (
                name,
                rng.choice(SOFT[name]) if name in SOFT else draw_constraint(name, seed.text, rng),
            )
            for name in draw_types(self._config.num_constraints, rng, self._config.types)
        ]
        written = await asyncio.gather(*(self._worded(seed, *one, refused) for one in drawn))
        constraints = tuple(one for one in written if one is not None)
        if not constraints:
            return "no constraint could be written"
        texts = [one.text for one in constraints]
        instructions = tuple(single_round(seed.text, texts[:k]) for k in range(len(texts) + 1))
        answers = await asyncio.gather(*(self._answer(text) for text in instructions))
        comparisons: list[Comparison] = []

        async def judged(k: int, earlier: str, new: str) -> Step:
            found = await compare(
                self._choice, self._judge_template, instructions[k], texts[:k], earlier, new
            )
            comparisons.append(found)
            return _STEPS[found.outcome]

        chain = await winner_chain(instructions, answers, judged)
        return Composed(
            seed=seed,
            constraints=constraints,
            chain=chain,
            comparisons=tuple(comparisons),
            instructions=instructions,
        )

    async def _worded(
        self, seed: Seed, name: str, drawn: Worded | str, refused: Counter[str]
    ) -> Worded | None:
        """A hard constraint as it was drawn; a soft one in the words that the rewriter finds for
        what was drawn, None if it finds none."""
        if isinstance(drawn, Worded):
            return drawn
        template = self._rewriter_template
        messages = template.render(seed.text, drawn)
        reply = await self._reply("rewriter", messages, template.max_tokens)
        try:
            return Worded(name, template.constraint_in(reply))
        except UnusableReplyError:
            refused[name] += 1
            return None

    async def _answer(self, instruction: str) -> str:
        system = self._config.system_prompt
        turns = [] if system is None else [Message("system", system)]
        turns.append(Message("user", instruction))
        return (await self._reply("writer", turns, self._config.max_new_tokens)).strip()

    async def _choice(self, messages: Sequence[Message]) -> str:
        if self._config.judge.mode == "reply":
            return await self._reply("judge", messages, self._judge_template.max_tokens)
        backend = self._backends["judge"]

        async def ask() -> str:
            logprobs = await backend.label_logprobs(messages, LABELS)
            return LABELS[max(range(len(LABELS)), key=logprobs.__getitem__)]

        return await self._kept("judge", messages, {"mode": "logits"}, ask)

    async def _reply(self, role: str, messages: Sequence[Message], max_tokens: int) -> str:
        backend = self._backends[role]
        return await self._kept(
            role,
            messages,
            {"max_tokens": max_tokens},
            lambda: backend.reply(messages, max_tokens),
        )

    async def _kept(
        self,
        role: str,
        messages: Sequence[Message],
        how: Mapping[str, Any],
        ask: Callable[[], Awaitable[str]],
    ) -> str:
        request = {
            "role": role,
            "source": self._config.models[role].identity,
            "messages": [list(message) for message in messages],
            **how,
        }
        return await self._cache.reply(request, ask)


async def started_backends(config: SoftConfig, stack: AsyncExitStack) -> dict[str, Backend]:
    """The models by role, each source started once; ``stack`` closes them."""
    made: dict[str, Backend] = {}
    found: dict[str, Backend] = {}
    for role, source in config.models.items():
        key = json.dumps(source.identity, sort_keys=True, default=str)
        if key not in made:
            backend = source.backend(role)
            await backend.start()
            stack.push_async_callback(backend.close)
            made[key] = backend
        found[role] = made[key]
    return found
