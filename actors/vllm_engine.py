"""The vLLM engine: token ids in, token ids out, weights changed between two tokens.

The only door to vLLM in the actor's process (``vllm_weights`` is the part inside vLLM's own
children). Owns sampling parameters, version spans, cache salts and the children's environment.
Does not know leases, stores or where it runs.

One request of vLLM for each sample: siblings share the prompt's blocks through the prefix cache,
whose salt is the weight version, so that no request ever starts on keys of other weights.
Requests ask for their final output only; until then vLLM's front end keeps the tokens, and
``progress`` counts them there. That is the cheapest way to know every count at any time.

An update, with every request in flight kept::

    pause   scheduler stops, device idle, all outputs of finished steps processed: counts exact
    load    file in memory ─▶ worker verifies, loads ─▶ next chunk ... receipt echoed ─▶ spans noted
            keep:      requests go on over old keys; those without a token start afresh
            recompute: vLLM preempts all and computes their keys anew under the new weights
    resume
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from actors.rendering import PromptRenderer
from actors.rollout import EngineFailedError
from actors.vllm_direct import DirectTransfer
from actors.vllm_images import engine_input, show
from actors.vllm_processes import child_environment
from actors.vllm_sample import VllmSample
from actors.vllm_transfer import transfer
from safeladder.config import ModelConfig, RolloutConfig
from safeladder.engine_profile import EngineLoad, EngineProfile
from safeladder.images import PromptImage
from safeladder.partials import PartialCompletion
from safeladder.ports import RawTensors
from safeladder.records import Completion, Prompt, Sampling, WeightManifest
from safeladder.weights_config import WeightsConfig

if TYPE_CHECKING:
    from vllm import AsyncEngineArgs
    from vllm.outputs import RequestOutput
    from vllm.v1.engine.async_llm import AsyncLLM

logger = logging.getLogger(__name__)

T = TypeVar("T")

CALL_DEADLINE_S = 300.0
"""Longest wait for one answer of the engine core; a pause waits for the step in progress."""
DEATH_POLL_S = 0.5
CPU_BLOCK_TOKENS = 32
"""Siblings share whole blocks of their prompt. vLLM's 128 on CPUs is longer than many a prompt:
with 84 prompt tokens, 8 siblings and 24 sampled tokens, 32 halved the work for a token."""
GIB = 2**30


class VllmEngine:
    """``ports.RolloutEngine`` on vLLM's ``AsyncLLM``, on a CPU or on GPUs.

    ``seed`` is used where ``Sampling.seed`` is None; ``direct`` receives versions that come from
    GPU to GPU. Raises ``EngineFailedError`` from any method once the engine process is dead or its
    weights are half loaded.
    """

    def __init__(
        self,
        model: ModelConfig,
        rollout: RolloutConfig,
        seed: int,
        chunk_bytes: int = WeightsConfig().chunk_bytes,
        direct: DirectTransfer | None = None,
    ) -> None:
        self._chunk_bytes = chunk_bytes
        self._direct = direct
        self._model = model
        self._rollout = rollout
        self._seed = seed
        self._llm: AsyncLLM | None = None
        self._renderer: PromptRenderer | None = None
        self._samples: dict[str, list[VllmSample]] = {}
        self._door = asyncio.Lock()
        self._is_paused = False
        self._failure: str | None = None
        self._version = 0
        self._salt = "0"

    @property
    def served_version(self) -> int:
        """Version that makes the next token."""
        return self._version

    async def start(self) -> None:
        """Load the base model in child processes; takes tens of seconds."""
        self._renderer = await asyncio.to_thread(PromptRenderer.from_config, self._model)
        self._llm = await asyncio.to_thread(self._launch)

    def progress(self, request_id: str) -> tuple[int, ...]:
        """Tokens made so far by each sample of a request in flight, in order of index."""
        samples = self._samples[request_id]
        return tuple(sample.begun.tokens.size + self._count(sample) for sample in samples)

    async def look(self, prompt: Prompt) -> tuple[PromptImage, ...]:
        """See ``ports.RolloutEngine.look``."""
        return await asyncio.to_thread(self._rendering.look, prompt)

    async def generate(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: Sampling,
        begun: Sequence[PartialCompletion] | None = None,
        images: Sequence[PromptImage] = (),
    ) -> AsyncGenerator[Completion | PartialCompletion, None]:
        """See ``ports.RolloutEngine.generate``."""
        tokens = self._rendering.render(prompt, self._rollout.max_prompt_tokens, images)
        begun = PartialCompletion.all_of(sampling) if begun is None else begun
        samples = [VllmSample(request_id, tokens, sampling, one) for one in begun]
        self._samples[request_id] = samples  # from here on they can be interrupted
        tasks: list[asyncio.Task[Completion | PartialCompletion]] = []
        try:
            if images:
                shown = await asyncio.to_thread(show, tokens, images, self._rendering.family)
                for sample in samples:
                    sample.shown = shown
            tasks += [asyncio.create_task(self._complete(sample)) for sample in samples]
            for finished in asyncio.as_completed(tasks):
                yield await finished
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            del self._samples[request_id]

    async def interrupt(self, request_id: str) -> None:
        """See ``ports.RolloutEngine.interrupt``. vLLM's core may have made a token more than its
        front end has seen: that one is not counted, and made again."""
        async with self._door:  # no update is half-way, no submission either
            for sample in self._samples.get(request_id, ()):
                sample.is_interrupted = True
            running = [s.internal_id for s in self._in_flight() if s.request_id == request_id]
            if running:
                await self._engine.abort(running, internal=True)

    async def pause(self) -> None:
        """See ``ports.RolloutEngine.pause``."""
        await self._ask(self._engine.pause_generation(mode="keep", clear_cache=False))
        await self._drain_outputs()
        self._is_paused = True

    async def load(self, manifest: WeightManifest, tensors: RawTensors) -> None:
        """See ``ports.RolloutEngine.load``. An update with one part of a fused module but not the
        others is a ``ValueError``; the old version is served then too."""
        if not self._is_paused:
            raise RuntimeError("load() needs a paused engine")
        async with self._door:
            await self._transfer(manifest, tensors)
            self._version = manifest.version
            self._salt = f"{manifest.version}-{manifest.digest}"
            await self._switch()

    async def resume(self) -> None:
        """See ``ports.RolloutEngine.resume``."""
        self._is_paused = False
        await self._ask(self._engine.resume_generation())

    def limits(self) -> EngineProfile:
        """See ``ports.RolloutEngine.limits``."""
        cache = self._engine.vllm_config.cache_config
        return EngineProfile(
            kv_tokens=(cache.num_gpu_blocks or 0) * cache.block_size,
            max_sequences=self._rollout.vllm.max_num_seqs,
        )

    def occupancy(self) -> EngineLoad:
        """See ``ports.RolloutEngine.occupancy``."""
        from actors.vllm_load import LoadRecorder

        return LoadRecorder.of(self._engine).load

    async def close(self) -> None:
        """Abort everything and end all child processes."""
        if self._llm is not None:
            llm, self._llm = self._llm, None
            if llm.output_handler is not None:  # else it reports the core's end as a failure
                llm.output_handler.cancel()
            await asyncio.to_thread(llm.shutdown)

    @property
    def _engine(self) -> AsyncLLM:
        if self._failure is not None:
            raise EngineFailedError(self._failure)
        if self._llm is None:
            raise EngineFailedError("the engine is not started, or closed")
        return self._llm

    @property
    def _rendering(self) -> PromptRenderer:
        if self._renderer is None:
            raise EngineFailedError("the engine is not started")
        return self._renderer

    def _launch(self) -> AsyncLLM:
        with child_environment(enforce_eager=self._rollout.vllm.enforce_eager):
            from vllm.v1.engine.async_llm import AsyncLLM

            from actors.vllm_load import LoadRecorder

            return AsyncLLM.from_engine_args(self._engine_args(), stat_loggers=[LoadRecorder])

    def _engine_args(self) -> AsyncEngineArgs:
        from vllm import AsyncEngineArgs
        from vllm.config import WeightTransferConfig
        from vllm.platforms import current_platform

        from actors.vllm_weights import BACKEND, WorkerExtension, backend_of

        vllm = self._rollout.vllm
        backend = BACKEND if self._direct is None else backend_of(self._direct.transport)
        cpu_cache: dict[str, int] = {}
        if current_platform.is_cpu():
            cpu_cache["kv_cache_memory_bytes"] = int(vllm.cpu_kv_cache_gib * GIB)
            cpu_cache["block_size"] = CPU_BLOCK_TOKENS
        return AsyncEngineArgs(
            model=str(self._model.path),
            dtype=self._model.dtype,
            seed=self._seed,
            max_model_len=self._rollout.max_model_tokens,
            max_num_seqs=vllm.max_num_seqs,
            enforce_eager=vllm.enforce_eager,
            tensor_parallel_size=vllm.tensor_parallel_size,
            distributed_executor_backend="uni" if vllm.tensor_parallel_size == 1 else "mp",
            gpu_memory_utilization=vllm.gpu_memory_utilization,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",
            generation_config="vllm",
            weight_transfer_config=WeightTransferConfig(backend=backend),
            worker_extension_cls=f"{WorkerExtension.__module__}.{WorkerExtension.__qualname__}",
            disable_log_stats=True,
            **(self._vision_args() if self._rendering.family else {"skip_tokenizer_init": True}),
            **cpu_cache,
        )

    def _vision_args(self) -> dict[str, Any]:
        """No video is ever shown, and no dummy images are run at the start: what an encoder needs
        is small beside the cache. Finished pixels pass by vLLM's own processor and its cache; the
        processor, which then only tells sizes, wants a tokenizer all the same."""
        return {
            "skip_tokenizer_init": False,
            "limit_mm_per_prompt": {"video": 0},
            "mm_device_do_normalize": False,  # our pixels are normalized
            "mm_processor_cache_gb": 0,
            "skip_mm_profiling": True,
        }

    async def _complete(self, sample: VllmSample) -> Completion | PartialCompletion:
        """Run one sample to its end; start it afresh as often as an update asks for that."""
        output = await self._run(sample)
        while sample.starts_afresh:
            output = await self._run(sample)
        whole = sample.so_far(output)
        reason = None if output is None else output.outputs[0].finish_reason
        if reason in ("stop", "length"):
            return whole.finished(sample.prompt, self._rendering.decode(whole.tokens), reason)
        if not sample.is_interrupted or self._failure is not None:
            raise EngineFailedError(self._failure or f"vLLM ended with {reason}")
        return whole

    async def _run(self, sample: VllmSample) -> RequestOutput | None:
        """The output of one request; None if it was interrupted before it began."""
        from vllm.v1.engine.exceptions import EngineDeadError

        llm = self._engine
        try:
            async with self._door:  # an update never falls between salt and registration
                sample.starts_afresh = False
                if sample.is_interrupted:
                    return None
                sample.spans = [(0, self._version)]
                # The salt is the version of now for a continued sample, too: the keys of its
                # tokens are computed anew unless these very weights have computed them.
                prompt = engine_input(sample.all_prompt_tokens, sample.shown, self._salt)
                params = sample.params(list(self._rendering.stop_ids))
                queue = await llm.add_request(sample.name, prompt, params)
                sample.internal_id = queue.request_id
            output: RequestOutput = queue.get_nowait() or await queue.get()
            sample.num_made = len(output.outputs[0].token_ids)
            return output
        except EngineDeadError as error:
            self._failure = "the engine process is dead"
            raise EngineFailedError(self._failure) from error
        except asyncio.CancelledError:
            # By its external name: a submission that was cut short has no internal one yet.
            await llm.abort(sample.name)
            raise

    async def _drain_outputs(self) -> None:
        """Return when vLLM's front end has processed every output of the finished steps.

        The core's answer to the pause travels behind these outputs, so they are here; the output
        handler is a task of this loop that waits nowhere else than on this queue, and yields once
        after each ``VLLM_V1_OUTPUT_PROC_CHUNK_SIZE`` outputs of a step.
        """
        from vllm import envs

        queue = self._engine.engine_core.outputs_queue
        chunks = -(-self._rollout.vllm.max_num_seqs // envs.VLLM_V1_OUTPUT_PROC_CHUNK_SIZE)
        while not queue.empty():  # noqa: ASYNC110 - the handler needs turns of the loop, no event
            await asyncio.sleep(0)
        for _ in range(chunks + 2):  # the last turns are for the tasks that take the results
            await asyncio.sleep(0)

    async def _transfer(self, manifest: WeightManifest, tensors: RawTensors) -> None:
        llm = self._engine
        try:
            if self._direct is None:
                await transfer(llm, self._ask, manifest, tensors, self._chunk_bytes)
            else:
                workers = self._rollout.vllm.tensor_parallel_size
                await self._direct.run(llm, self._ask, manifest, workers)
        except EngineFailedError as error:
            if self._failure is None:  # the engine lives, but with a mixture of versions
                in_flight = [sample.internal_id for sample in self._in_flight()]
                self._failure = str(error)
                await llm.abort(in_flight, internal=True)
            raise

    async def _switch(self) -> None:
        """Note where the new version begins in each request, and settle its cache."""
        from actors.vllm_load import LoadRecorder

        llm = self._engine
        recompute = self._rollout.kv_on_update == "recompute"
        for sample in self._in_flight():
            count = self._count(sample)
            if recompute or count > 0:
                sample.spans.append((count, self._version))
            else:  # its prompt may be in the cache, made by old weights
                sample.starts_afresh = True
                await llm.abort(sample.internal_id, internal=True)
        if recompute:
            LoadRecorder.of(llm).will_preempt_all()
        if recompute or not self._in_flight():
            is_reset = await self._ask(llm.reset_prefix_cache(reset_running_requests=recompute))
        else:  # vLLM refuses while requests hold blocks
            is_reset = False
        if not is_reset:  # harmless: what stays in the cache is salted with an older version
            logger.info("version %d: the old cache stays in use", self._version)

    def _in_flight(self) -> list[VllmSample]:
        running = self._engine.output_processor.request_states
        return [s for group in self._samples.values() for s in group if s.internal_id in running]

    def _count(self, sample: VllmSample) -> int:
        """Tokens made here."""
        state = self._engine.output_processor.request_states.get(sample.internal_id)
        if state is None:
            return sample.num_made
        count: int = state.detokenizer.num_output_tokens()
        return count

    async def _ask(self, call: Coroutine[Any, Any, T]) -> T:
        """Await an answer of the engine core, but not from a dead one and not for ever."""
        from vllm.v1.engine.exceptions import EngineDeadError

        answer = asyncio.ensure_future(call)
        try:
            async with asyncio.timeout(CALL_DEADLINE_S):
                while not answer.done():
                    await asyncio.wait({answer}, timeout=DEATH_POLL_S)
                    if self._engine.errored:
                        raise EngineDeadError
            return await answer
        except EngineDeadError as error:
            self._failure = "the engine process is dead"
            raise EngineFailedError(self._failure) from error
        except TimeoutError as error:
            self._failure = f"the engine process gave no answer for {CALL_DEADLINE_S:g} s"
            raise EngineFailedError(self._failure) from error
        finally:
            answer.cancel()
