"""The process in which vLLM computes: mended where that is needed, and never left behind.

vLLM resolves ``server.engine_worker.Worker`` by name inside its engine process.
"""

from __future__ import annotations

import os
import select
import signal
import threading
from typing import Any

import torch
from vllm.platforms import current_platform

from server import engine_adapter_files

if current_platform.is_cpu():
    from vllm.v1.worker.cpu_worker import CPUWorker as PlatformWorker
else:
    from vllm.v1.worker.gpu_worker import Worker as PlatformWorker


def end_with(pid: int) -> None:
    """Ends this process when process `pid` ends, however that happens.

    vLLM's engine process waits for requests for ever when its server is killed, and keeps gigabytes. A parent-death
    signal would follow the thread that forked, which ends long before the server does, so a thread watches the process.
    """
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        os._exit(1)

    def watch() -> None:
        # poll, because select refuses descriptors above 1023.
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        poll.poll()
        os._exit(1)

    threading.Thread(target=watch, name="end-with-server", daemon=True).start()


def stand_apart() -> None:
    """Takes this process out of the reach of signals that are meant for the server.

    Ctrl-C reaches a terminal's whole process group: the engine would abort the answers that the server still wants to
    finish. And a forked process shares the pipe by which Python tells an event loop about signals, so a signal to the
    engine would run the server's handlers.
    """
    os.setpgid(0, 0)
    signal.set_wakeup_fd(-1)


class Worker(PlatformWorker):  # type: ignore[misc]
    """vLLM's worker for this machine. Reads `server_pid` and `threads` from vLLM's ``additional_config``."""

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        settings = vllm_config.additional_config
        # First, before gigabytes are read: a server killed while the engine starts must not leave it behind either.
        end_with(settings["server_pid"])
        stand_apart()
        engine_adapter_files.mend()
        if current_platform.is_cpu():
            from server import engine_cpu_lora, engine_cpu_seed, engine_cpu_top_p

            engine_cpu_lora.mend()
            engine_cpu_seed.mend()
            engine_cpu_top_p.mend()
            # vLLM's CPU worker forbids to change the number of threads from its initialisation on.
            torch.set_num_threads(settings["threads"])
        super().__init__(vllm_config, *args, **kwargs)
