"""A language model as verifier: template in, label out, score by table.

Owns the fence round untrusted text and the way from a sample to a judgment. It does not know where
the model runs (``rewards.completers``, ``rewards.endpoint``). A reply without a label is
INVALID(malformed); no number is ever guessed.
"""

from __future__ import annotations

import secrets
from string import Template
from typing import Any, Literal

import msgspec
from pydantic import PositiveFloat, PositiveInt

from rewards.building import check_options, load_object
from rewards.completers import Backend, Local
from rewards.endpoint import Endpoint
from rewards.format import THINK_START, think_fault
from rewards.images import MAX_IMAGE_BYTES
from rewards.judging import Judgment, NotApplicableError, SampleVerifier, UnjudgedError
from rewards.label_scores import MIN_MASS, judge_by_logprobs
from rewards.templates import JudgeTemplate, load_template
from rewards.untrusted import disarmed
from safeladder.config import Share
from safeladder.records import THINK_END, InvalidCause, Message, ScoreRequest


class Judge(SampleVerifier):
    """Scores the visible answer by what a model says about it.

    ``template`` names a file (``templates.load_template``). The model answers behind ``endpoint``
    (base URL of any OpenAI-compatible server, with ``model`` and optionally ``api_key: env:NAME``),
    or in this process as ``completer: module:Class`` with ``completer_options``. ``scores``
    overrides entries of the template's table.

    ``mode``: ``reply`` reads a generated label, ``logits`` compares how likely the labels are as
    replies: ``logit_score: prob`` gives the expected score, ``hard`` that of one label, for which
    the better of two must reach ``threshold``; if all labels together are less likely than
    ``min_mass``, there is no verdict (0 takes any model at its word). ``score_chain`` judges the
    chain of thought as well and multiplies; a response without exactly one think block scores 0
    (``opened_by_prompt``: see ``format.ThinkFormat``).

    ``timeout_s`` bounds each call, ``max_concurrency`` the calls under way (endpoint),
    ``batch_size`` the prompts of one call (completer), ``max_image_bytes`` an image. Samples with
    images are INVALID(abstain) to a completer that reads text only.
    """

    code_version = "4"

    def __init__(
        self,
        *,
        principle: str,
        template: str,
        endpoint: str | None = None,
        model: str | None = None,
        api_key: str | None = None,
        completer: str | None = None,
        completer_options: dict[str, Any] | None = None,
        scores: dict[str, Share] | None = None,
        mode: Literal["reply", "logits"] = "reply",
        logit_score: Literal["prob", "hard"] = "hard",
        threshold: Share = 0.5,
        min_mass: Share = MIN_MASS,
        score_chain: bool = False,
        opened_by_prompt: bool = False,
        timeout_s: PositiveFloat = 30.0,
        max_concurrency: PositiveInt = 8,
        batch_size: PositiveInt = 16,
        max_image_bytes: PositiveInt = MAX_IMAGE_BYTES,
    ) -> None:
        self._template = _overridden(load_template(template), scores or {})
        options: dict[str, Any] = {
            "template": self._template.model_dump(mode="json"),
            "model": model,
            "completer": completer,
            "completer_options": completer_options,
            "mode": [mode, logit_score, threshold, min_mass],
            "chain": [score_chain, opened_by_prompt],
            "max_image_bytes": max_image_bytes,
        }
        options["template"]["needs"].sort()
        super().__init__(principle, options)
        self._by_logits = mode == "logits"
        self._logit_score: Literal["prob", "hard"] = logit_score
        self._threshold = threshold
        self._min_mass = min_mass
        self._score_chain = score_chain
        self._opened_by_prompt = opened_by_prompt
        if self._by_logits:
            _require_distinct(self._template.scores)
        self._backend: Backend
        if (endpoint is None) == (completer is None):
            raise ValueError("give either `endpoint` with `model`, or `completer`")
        if endpoint is not None:
            if model is None:
                raise ValueError("`endpoint` needs `model`, the name the server knows it by")
            self._backend = Endpoint(
                endpoint, model, api_key, timeout_s, max_concurrency, max_image_bytes
            )
        elif completer is not None:
            where = f"principles.{principle}.options"
            cls = load_object(completer, f"{where}.completer")
            if self._by_logits and not hasattr(cls, "label_logprobs"):
                raise ValueError(f"`mode: logits` needs a completer with label_logprobs: {cls}")
            checked = check_options(cls, completer_options or {}, f"{where}.completer_options")
            self._backend = Local(cls, checked, timeout_s, batch_size, max_image_bytes)

    async def start(self) -> None:
        """Connect or load. Raises ``VerifierUnavailableError`` or ``ConfigError``."""
        await self._backend.start()

    async def close(self) -> None:
        """Disconnect or unload."""
        await self._backend.close()

    async def judge_sample(self, request: ScoreRequest) -> Judgment:
        """Ask the model; evidence is its reply, or the probabilities of its labels."""
        needs = self._template.needs
        if "image" in needs and not request.images:
            raise NotApplicableError("the sample has no image")
        if "reference" in needs and not (request.reference or "").strip():
            raise UnjudgedError(InvalidCause.ERROR, "the record has no reference to compare with")
        if self._score_chain or self._template.reads_chain:
            fault = think_fault(request.response, self._opened_by_prompt)
            if fault is not None:
                return Judgment(0.0, fault)
        judgment = await self._judge(request)
        if not self._score_chain:
            return judgment
        chain = await self._judge(msgspec.structs.replace(request, response=_chain(request)))
        return Judgment(
            judgment.score * chain.score,
            judgment.label,
            f"answer: {judgment.label}, chain: {chain.label}",
        )

    def render(self, request: ScoreRequest) -> tuple[Message, ...]:
        """The conversation the model is asked with; a new random mark at every call, so that a
        response cannot close the fence it stands in, and no control word of a chat format."""
        fields = {
            "question": disarmed(request.question),
            "answer": disarmed(request.answer),
            "chain": disarmed(_chain(request)),
            "reference": disarmed(request.reference or ""),
            "labels": "\n".join(f"- {label}" for label in self._template.scores),
            "fence": secrets.token_hex(8),
        }
        prompt = self._template.prompt_of(request)
        return (
            Message("system", Template(prompt.system).substitute(fields)),
            Message("user", Template(prompt.user).substitute(fields)),
        )

    async def _judge(self, request: ScoreRequest) -> Judgment:
        template, blank = self._template, self._template.blank
        if blank is not None and not request.answer:
            return Judgment(template.scores[blank], blank, "blank answer")
        messages, images = self.render(request), request.images
        if self._by_logits:
            labels = list(template.scores)
            logprobs = await self._backend.label_logprobs(messages, labels, images)
            return judge_by_logprobs(
                logprobs, template.scores, self._logit_score, self._threshold, self._min_mass
            )
        reply = await self._backend.reply(messages, template.max_tokens, images)
        label = template.label_of(reply)
        if label is None:
            raise UnjudgedError(InvalidCause.MALFORMED, f"no label in the reply: {reply!r}")
        return Judgment(template.scores[label], label, reply)


def _chain(request: ScoreRequest) -> str:
    """The chain of thought: what stands before the last ``</think>``."""
    return request.response.rpartition(THINK_END)[0].replace(THINK_START, "").strip()


def _overridden(template: JudgeTemplate, scores: dict[str, float]) -> JudgeTemplate:
    if unknown := set(scores) - set(template.scores):
        raise ValueError(f"scores names no label: {sorted(unknown)}; {sorted(template.scores)}")
    return template.model_copy(update={"scores": template.scores | scores})


def _require_distinct(labels: dict[str, float]) -> None:
    """A label that begins another one shares its probability, so `logits` cannot compare them."""
    for label in labels:
        longer = [other for other in labels if other != label and other.startswith(label)]
        if longer:
            raise ValueError(f"`mode: logits` cannot tell {label!r} from {longer[0]!r}")
