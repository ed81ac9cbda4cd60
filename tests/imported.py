"""What server and learner import. See tests/processes.py."""

from server import engine_vllm

engine_vllm._import_vllm(verbose=False)
