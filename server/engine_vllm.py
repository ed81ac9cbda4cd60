"""The real engine: vLLM's AsyncLLM, with its core in one process of its own.

    this process                        engine process (server.engine_worker)
    ────────────                        ─────────────────────────────────────
    tokens, detokenizer, streams  ──►   scheduler, KV cache, weights, adapters
                                  ◄──   sampled tokens and log-probabilities

vllm is imported when an engine starts, not when this module is: the import takes seconds and reads the environment.
"""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import tempfile
import threading
import warnings
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

from server import engine_cpu_quantised
from server.engine import Chunk, Finish, SamplingSpec, Weights
from thumbwheel.config import Config
from thumbwheel.errors import AdapterRefused, Conflict, EngineDead, InvalidInput, NotFound, SetupError

log = logging.getLogger("thumbwheel.engine")

T = TypeVar("T")

LORA_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Ranks that vLLM can make room for."""

LORA_MODULES = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
"""The layers that adapters may change, by vLLM's names; every other layer runs without LoRA's overhead."""

CPU_STEP_TOKENS = 512
"""Prompt tokens computed in one step on a CPU: about a second, which is how long a new prompt may hold up streams."""


async def start_engine(config: Config) -> VllmEngine:
    """Starts the engine process, loads the model and answers one request to warm up.

    Args:
        config: `model.path` is the folder of a checkpoint.

    Raises:
        SetupError: the model cannot be served; the engine process' own log says more.
    """
    from server.engine_merged import MergedVllmEngine  # which is a VllmEngine, and needs this module first

    if config.model.path == "embedded":
        raise SetupError("model.path is still 'embedded'; `thumbwheel serve` prepares that model and passes its folder")
    folder = Path(config.model.path)
    if not (folder / "config.json").is_file():
        raise SetupError(f"model.path: {folder} holds no model (there is no config.json)")
    # Apart from the launch: vLLM keeps an ImportError of one of its modules, which would keep these frames, and in them
    # the engine, until the interpreter's end.
    await asyncio.to_thread(_import_vllm, config.log.level == "debug")
    scratch = TemporaryDirectory(prefix="wheel-", ignore_cleanup_errors=True)  # short: a socket's path is bounded
    try:
        with _temporary_files_in(scratch.name):
            llm = await _in_new_thread(lambda: _launch(config))
    except BaseException:
        scratch.cleanup()
        raise
    kind = MergedVllmEngine if config.server.weights == "merged" else VllmEngine
    engine = kind(llm, scratch, max_adapters=config.server.max_adapters)
    try:
        # The first request of a process costs seconds: kernels are chosen and memory is touched for the first time.
        warm_up = SamplingSpec(max_tokens=2, temperature=1.0, top_p=0.9, stop=(), seed=0)
        async for _ in engine.generate(
            "warm-up", engine.render([("user", "Hi")]), warm_up, 1, Weights("base", 0, None)
        ):
            pass
    except BaseException:
        await engine.close()
        raise
    return engine


def _import_vllm(verbose: bool) -> None:
    """Takes seconds. The environment is set before: vLLM, torch and OpenMP read it when they are imported."""
    os.environ["VLLM_NO_USAGE_STATS"] = "1"
    # By default OpenMP's threads wait for each other by spinning; with a learner on the same cores they spin through
    # each other's time slices, and answers come five times slower. Without any spinning each of the hundreds of small
    # products of LoRA in a step waits for the scheduler: some 170 us instead of 30. So: spin briefly, then sleep.
    os.environ.setdefault("GOMP_SPINCOUNT", "3000")
    # On a CPU every size of a step compiles matrix products of its own, megabytes each. vLLM keeps those of the last 32
    # sizes; oneDNN beneath it would keep the last 1024 products, gigabytes that prompts of many lengths slowly fill.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
    # Left to their own, vLLM and torch write a page at every start. Errors stay, and come through our own log.
    os.environ["VLLM_CONFIGURE_LOGGING"] = "0"
    logging.getLogger("vllm").setLevel(logging.INFO if verbose else logging.ERROR)
    if not verbose:
        logging.getLogger("torch._library").setLevel(logging.ERROR)
        os.environ["TORCH_CPP_LOG_LEVEL"] = "ERROR"
    with _quiet():
        import vllm.v1.engine.async_llm  # noqa: F401


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Python's warnings about vLLM's own use of torch; what is forked inside stays without them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@contextmanager
def _temporary_files_in(folder: str) -> Iterator[None]:
    """For this process and those that it starts: vLLM leaves its sockets and its processes' meeting place behind."""
    names, before = ("TMPDIR", "VLLM_RPC_BASE_PATH"), tempfile.tempdir
    kept = {name: os.environ.get(name) for name in names}
    tempfile.tempdir = folder
    os.environ.update(dict.fromkeys(names, folder))
    try:
        yield
    finally:
        tempfile.tempdir = before
        for name, value in kept.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _launch(config: Config) -> Any:
    """Forks the engine process and waits until it has read the model."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.platforms import current_platform
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.executor.abstract import Executor

    on_cpu = current_platform.is_cpu()
    if on_cpu:
        from server.engine_cpu_lora import require_known_version

        require_known_version()
    require_devices(config.server.tensor_parallel, 0 if on_cpu else current_platform.device_count())
    try:
        with _quiet():
            settings = AsyncEngineArgs(**engine_settings(config, on_cpu)).create_engine_config()
            if on_cpu:
                engine_cpu_quantised.require_kernels(settings.model_config.quantization)
                # vLLM's choice for a CPU is an executor in yet another process, which keeps a core busy with waiting,
                # and a start from nothing; both are written over after its configuration is made, and only there.
                settings.parallel_config.distributed_executor_backend = "uni"
                os.environ["VLLM_WORKER_MULTIPROC_METHOD"] = "fork"
            return AsyncLLM(settings, Executor.get_class(settings), log_stats=True, log_requests=False)
    except (ValueError, RuntimeError, OSError) as error:
        raise SetupError(f"the model {config.model.path} cannot be served: {error}") from error


def require_devices(wanted: int, there: int) -> None:
    """
    Args:
        wanted: `server.tensor_parallel`.
        there: GPUs that this process sees; 0 where the engine runs on a CPU.

    Raises:
        SetupError: the engine is to span more GPUs than there are.
    """
    if wanted > max(there, 1):
        raise SetupError(
            f"server.tensor_parallel = {wanted}: there are {there} GPUs here\n"
            "  set it to 1, or start where there are as many"
        )


def engine_settings(config: Config, on_cpu: bool) -> dict[str, Any]:
    """vLLM's engine arguments."""
    server = config.server
    settings: dict[str, Any] = {
        "model": config.model.path,
        "max_model_len": _max_context(config),
        "max_num_seqs": server.max_sequences,
        "scheduling_policy": "priority",
        "enable_prefix_caching": True,
        "logprobs_mode": "processed_logprobs",  # as sampled: after temperature and top-p
        "worker_cls": "server.engine_worker.Worker",
        "additional_config": {"server_pid": os.getpid(), "threads": server.threads or len(os.sched_getaffinity(0))},
        "use_tqdm_on_load": False,
    }
    if server.weights == "merged":
        # vLLM would otherwise plan a step before it knows the last one's tokens, and `merged_switch` could not count.
        settings |= {"worker_extension_cls": "server.engine_merged_worker.MergedWeights", "async_scheduling": False}
    else:
        settings |= {
            "enable_lora": True,
            "max_loras": server.max_adapters,
            "max_cpu_loras": server.max_adapters,
            "max_lora_rank": next(rank for rank in LORA_RANKS if rank >= server.max_lora_rank),
            "lora_target_modules": LORA_MODULES,
        }
    if on_cpu:
        return settings | {
            "dtype": "float32" if config.model.dtype == "auto" else config.model.dtype,
            "enforce_eager": True,  # compiling takes minutes here
            "kv_cache_memory_bytes": server.kv_cache_bytes,
            "block_size": 32,  # vLLM's 128 would keep most conversations out of the prefix cache
            "max_num_batched_tokens": max(CPU_STEP_TOKENS, server.max_sequences),
            "distributed_executor_backend": "uni",
        }
    return settings | {
        "dtype": config.model.dtype,
        "gpu_memory_utilization": server.gpu_memory_share,
        "tensor_parallel_size": server.tensor_parallel,
    }


def _max_context(config: Config) -> int:
    """What is configured, or what the model can do if that is less."""
    described = (Path(config.model.path) / "config.json").read_text(encoding="utf-8")
    limit = json.loads(described).get("max_position_embeddings")
    return min(config.model.max_context, limit or config.model.max_context)


async def _in_new_thread(work: Callable[[], T]) -> T:
    """Runs work in a thread that has done nothing before.

    The engine process is forked, and inherits the forking thread. Had that thread ever used OpenMP, its copy would wait
    for ever on helper threads that did not come along.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:  # noqa: BLE001 - handed to the awaiting caller, whatever it is
            loop.call_soon_threadsafe(_settle, done, None, error)
        else:
            loop.call_soon_threadsafe(_settle, done, result, None)

    threading.Thread(target=run, name="start-engine").start()
    return await asyncio.shield(done)


def _settle(done: asyncio.Future[T], result: T | None, error: BaseException | None) -> None:
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result(result)  # type: ignore[arg-type]


class VllmEngine:
    """Obeys ``engine.Engine``; start it with `start_engine`. `scratch` goes with it."""

    one_version = False

    def __init__(self, llm: Any, scratch: TemporaryDirectory[str], max_adapters: int) -> None:
        self._llm = llm
        self._scratch = scratch
        self._max_adapters = max_adapters
        self._tokenizer = llm.get_tokenizer()
        self._loaded: dict[int, Weights] = {}
        self._running: set[str] = set()
        self._closed = False
        declared = llm.model_config.try_get_generation_config().get("eos_token_id") or []
        self._eos = frozenset([self._tokenizer.eos_token_id, *([declared] if isinstance(declared, int) else declared)])

    @property
    def max_context(self) -> int:
        return int(self._llm.model_config.max_model_len)

    @property
    def vocabulary(self) -> int:
        return int(self._llm.model_config.get_vocab_size())

    @property
    def eos_token_ids(self) -> frozenset[int]:
        return self._eos

    def render(self, messages: Sequence[tuple[str, str]]) -> list[int]:
        from jinja2 import TemplateError

        turns = [{"role": role, "content": content} for role, content in messages]
        try:
            ids: list[int] = self._tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        except TemplateError as error:
            raise InvalidInput("messages", f"the model's chat template refuses them: {error}") from error
        return ids

    def decode(self, token_ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def encode_answer(self, text: str) -> list[int]:
        end = [] if self._tokenizer.eos_token_id is None else [self._tokenizer.eos_token_id]
        return [*self._tokenizer.encode(text, add_special_tokens=False), *end]

    async def generate(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        sampling: SamplingSpec,
        n: int,
        weights: Weights,
        priority: int = 0,
        tenant: str = "",
    ) -> AsyncGenerator[Chunk, None]:
        from vllm.v1.engine.exceptions import EngineDeadError

        if self._closed:
            raise EngineDead("the engine is closed")
        # Without sampling all n answers are one; vLLM refuses to compute it n times, and so do we.
        copies = n if sampling.temperature == 0 else 1
        outputs = self._llm.generate(
            {"prompt_token_ids": list(prompt_token_ids), "cache_salt": self._cache_salt(weights, tenant)},
            _sampling_params(sampling, n // copies),
            request_id,
            lora_request=self._lora_request(weights),
            priority=priority,
        )
        self._running.add(request_id)
        try:
            async with aclosing(outputs):
                async for output in outputs:
                    for completion in output.outputs:
                        chunk = _chunk(completion)
                        for index in range(copies):
                            yield chunk if copies == 1 else _with_index(chunk, index)
        except EngineDeadError as error:
            raise EngineDead("the engine's process is gone") from error
        finally:
            self._running.discard(request_id)

    def _cache_salt(self, weights: Weights, tenant: str) -> str:
        """Keeps the prefix cache of a version, and of a tenant, its own."""
        return f"{weights.name}/{tenant}"  # a version's name has no slash and is never used again

    def _lora_request(self, weights: Weights) -> Any:
        """None for the base. vLLM would read a path that it does not know in mid-step, and die if it is bad."""
        from vllm.lora.request import LoRARequest

        if weights.adapter_id == 0:
            return None
        if self._loaded.get(weights.adapter_id) != weights:
            raise NotFound(f"version {weights.name} is not loaded")
        return LoRARequest(weights.name, weights.adapter_id, str(weights.path))

    async def load(self, weights: Weights) -> None:
        from vllm.lora.request import LoRARequest
        from vllm.v1.engine.exceptions import EngineDeadError

        known = self._loaded.get(weights.adapter_id)
        if known is not None:
            if known != weights:
                raise Conflict(f"adapter id {weights.adapter_id} is {known.name} already")
            return
        # One more would push out another adapter, perhaps under a running request.
        assert len(self._loaded) < self._max_adapters, "more adapters than slots"
        assert weights.path is not None
        assert weights.adapter_id > 0
        try:
            await self._llm.add_lora(LoRARequest(weights.name, weights.adapter_id, str(weights.path)))
        except EngineDeadError as error:
            raise EngineDead("the engine's process is gone") from error
        except Exception as error:
            # vLLM hands every failure of the engine process over as a bare Exception.
            raise AdapterRefused("engine", f"vLLM cannot load version {weights.name}: {error}") from error
        self._loaded[weights.adapter_id] = weights

    async def unload(self, adapter_id: int) -> None:
        if self._loaded.pop(adapter_id, None) is not None:
            await self._llm.remove_lora(adapter_id)

    async def switch(self, weights: Weights) -> None:
        self._lora_request(weights)

    async def forget_prompts(self) -> None:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            await self._llm.reset_prefix_cache(reset_running_requests=True)
        except EngineDeadError as error:
            raise EngineDead("the engine's process is gone") from error

    async def check(self) -> None:
        if self._closed or self._llm.errored:
            raise EngineDead("the engine's process is gone")

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        # Their consumers would wait for ever: stopping vLLM tells nobody.
        await self._llm.abort(list(self._running))
        # Before its engine goes: it would take that for a crash.
        self._llm.output_handler.cancel()
        await asyncio.to_thread(self._llm.shutdown, 10.0)
        # vLLM shuts down once more when it is collected, which fails in the ruins of a finished interpreter.
        with _quiet():
            del self._llm
            gc.collect()
        self._scratch.cleanup()


def _sampling_params(sampling: SamplingSpec, n: int) -> Any:
    from vllm.sampling_params import RequestOutputKind, SamplingParams

    return SamplingParams(
        n=n,
        max_tokens=sampling.max_tokens,
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        stop=list(sampling.stop),
        # vLLM reads -1 as "none", and adds the answer's index to it.
        seed=None if sampling.seed is None else sampling.seed % 2**62,
        logprobs=0,  # of the sampled token alone
        output_kind=RequestOutputKind.DELTA,
    )


def _chunk(completion: Any) -> Chunk:
    if completion.finish_reason not in (None, "stop", "length"):
        raise EngineDead("the engine gave the request up")
    finish: Finish | None = completion.finish_reason
    token_ids = list(completion.token_ids)
    logprobs = [position[token].logprob for position, token in zip(completion.logprobs, token_ids, strict=True)]
    return Chunk(completion.index, completion.text, token_ids, logprobs, finish)


def _with_index(chunk: Chunk, index: int) -> Chunk:
    return Chunk(index, chunk.text, list(chunk.token_ids), list(chunk.logprobs), chunk.finish)
