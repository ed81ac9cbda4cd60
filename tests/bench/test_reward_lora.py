"""The bench of LoRA on the reward model, on a tiny one."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
async def test_a_quick_run(tmp_path: Path) -> None:
    file = tmp_path / "found.json"
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.reward_lora", "--quick", "--json", str(file), "--tastes", "brief", "numeric",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), 600)
    assert process.returncode == 0, out.decode()
    found = json.loads(file.read_text(encoding="utf-8"))["results"]["tastes"]
    assert found.keys() == {"brief", "numeric"}
    for passes in found.values():
        assert len(passes) == 2
        assert all(row["seconds"] > 0 and row["error"] >= 0 for row in passes)
