"""Seeds on a CPU, mended.

vLLM 0.32 computes a long prompt in pieces and draws a token after each. Where the prompt is not complete it throws the
token away and takes the draw back with ``generator.set_offset(generator.get_offset() - 4)``. Generators on a CPU have
no offset: one seeded request whose prompt does not fit into a step ends the engine.

Here a generator remembers its state before a step's draw and returns to it when asked to go back, so that an answer
depends on its seed and not on how its prompt was cut. Bound to the same versions as ``engine_cpu_lora``.
"""

from __future__ import annotations

from typing import Any

import torch
from vllm.v1.worker import cpu_worker
from vllm.v1.worker.cpu_model_runner import CPUModelRunner


class RewindingGenerator(torch.Generator):
    """Undoes the draws since `keep`."""

    def keep(self) -> None:
        self._kept = self.get_state()

    def get_offset(self) -> int:
        return 0

    def set_offset(self, offset: int) -> torch.Generator:
        """Goes back; that is all that vLLM uses offsets for, whatever their number."""
        return self.set_state(self._kept)


class SeededModelRunner(CPUModelRunner):  # type: ignore[misc]
    """vLLM's runner with generators that can go back."""

    def _update_states(self, scheduler_output: Any) -> Any:
        result = super()._update_states(scheduler_output)
        batch = self.input_batch
        for arrived in scheduler_output.scheduled_new_reqs:
            request = self.requests[arrived.req_id]
            if request.generator is not None:
                generator = RewindingGenerator()
                generator.manual_seed(request.generator.initial_seed())
                # In both places: a request that is pushed out of the batch comes back with the one that it keeps.
                request.generator = batch.generators[batch.req_id_to_index[arrived.req_id]] = generator
        for generator in batch.generators.values():
            generator.keep()
        return result


def mend() -> None:
    """Makes this process' worker use the runner above."""
    cpu_worker.CPUModelRunner = SeededModelRunner
