"""``python -m cli.gguf_checkpoint GGUF FOLDER``: a GGUF file as a Hugging Face checkpoint in float32.

Says on stdout how far it is: a share that is done, and the share at which it will speak next.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    gguf, folder = Path(sys.argv[1]), Path(sys.argv[2])
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    print("0.2 0.35", flush=True)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    print("0.35 0.9", flush=True)
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )
    print("0.9 1", flush=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for path in (*folder.iterdir(), folder):
        file = os.open(path, os.O_RDONLY)
        os.fsync(file)  # before the folder gets the name that says it is whole
        os.close(file)


if __name__ == "__main__":
    main()
