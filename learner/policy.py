"""One frozen copy of the base carries the policy, the reference and the value head.

LoRA sits on the top `lora.layers` of the layers. What lies below it never changes, so its activations are computed once
per answer and serve every pass of PPO, the reference, and the reward model's features. There each answer passes alone:
beside others its last bits would depend on who they are, thus on what is remembered already; and a learner that was
killed, and remembers nothing, shall make the same version as if it had not been, bit for bit.

    tokens ──► lower (frozen) ──► activations ──┬──► upper, adapter on  ──► final ──┬─► log-probabilities, entropy
               once per answer                  │                                   ├─► value (detached trunk)
                                                ├──► upper, adapter off ──► final ──┴─► KL to the reference
                                                └──► means over answer tokens, form ──► the reward model's features

Shapes: B answers, T tokens of prompt and answer, A answer tokens, D hidden size, V vocabulary. Rows are padded on the
right and attention is causal, so no token ever sees padding: no attention mask is needed anywhere. What all prompts
of a batch begin with (a system prompt, the template) passes through the upper layers once, not once per answer.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np
import numpy.typing as npt
import peft
import safetensors.torch
import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional

from learner import adapter, ppo_math
from learner.layers import TokenLogp, run, stack
from thumbwheel import config
from thumbwheel.errors import AdapterRefused, SetupError

POLICY = "default"
"""The name of the policy's own adapter; PEFT's, so that its files are as everybody's."""
VALUE_HEAD = Path("training") / "value_head.safetensors"

_MEMO_BYTES = 512 << 20  # activations below the adapter that are kept

Answer: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]  # prompt and answer token ids


@dataclass(frozen=True, slots=True)
class Sample:
    """An answer to learn from.

    The answer includes the end-of-sequence token where the model ended it: when to stop is learned too.
    """

    prompt_ids: tuple[int, ...]
    answer_ids: tuple[int, ...]
    behaviour_logp: tuple[float, ...]
    """Nats per answer token, as sampled."""
    version: str
    """Which weights sampled it."""
    reward: float = 0.0
    """Score of the whole answer."""
    outlook: tuple[float, ...] = ()
    """The reward that was to be expected before each answer token; empty where nothing is known."""

    @property
    def answer(self) -> Answer:
        return self.prompt_ids, self.answer_ids


@dataclass(frozen=True, slots=True)
class Batch:
    """Answers side by side, each row padded on the right."""

    tokens: Tensor  # (B, T) prompt and answer; 0 on padding
    answers: Tensor  # (B, A) the answer's tokens; 0 on padding
    predictors: Tensor  # (B, A) column in `tokens` whose hidden state predicts answers[b, a]; 0 on padding
    mask: Tensor  # (B, A) 1.0 on answer tokens
    shared: int  # leading columns of `tokens` that are alike in all rows and predict no answer token

    @classmethod
    def of(cls, pairs: Sequence[Answer], device: torch.device) -> Batch:
        """Pads the answers.

        Raises:
            ValueError: a prompt or an answer is empty.
        """
        if any(not prompt or not answer for prompt, answer in pairs):
            raise ValueError("neither a prompt nor an answer may be empty")
        longest = max(len(prompt) + len(answer) for prompt, answer in pairs)
        longest_answer = max(len(answer) for _, answer in pairs)
        tokens = torch.zeros(len(pairs), longest, dtype=torch.long)
        answers = torch.zeros(len(pairs), longest_answer, dtype=torch.long)
        predictors = torch.zeros_like(answers)
        mask = torch.zeros(len(pairs), longest_answer)
        for row, (prompt, answer) in enumerate(pairs):
            tokens[row, : len(prompt) + len(answer)] = torch.tensor(prompt + answer)
            answers[row, : len(answer)] = torch.tensor(answer)
            predictors[row, : len(answer)] = torch.arange(len(answer)) + len(prompt) - 1
            mask[row, : len(answer)] = 1
        return cls(tokens.to(device), answers.to(device), predictors.to(device), mask.to(device), _shared(pairs))


def microbatches(pairs: Sequence[Answer], order: Sequence[int], tokens: int) -> Iterator[list[int]]:
    """Splits `order` (indices into `pairs`) into groups of similar length, each at most `tokens` with its padding.

    An answer longer than `tokens` goes alone.
    """
    group: list[int] = []
    for index in sorted(order, key=lambda i: (-sum(map(len, pairs[i])), i)):
        # Longest first: the first of a group sets its padded length, and running out of memory shows at once.
        if group and (len(group) + 1) * sum(map(len, pairs[group[0]])) > tokens:
            yield group
            group = []
        group.append(index)
    if group:
        yield group


class Policy:
    """Policy, reference and value head on one backbone; float32 on a CPU, the checkpoint's own precision on a GPU."""

    def __init__(self, model_folder: Path, lora: config.Lora, seed: int) -> None:
        """Loads the base and puts a fresh adapter on it, under which policy and base are the same.

        Args:
            model_folder: a Hugging Face causal language model in the manner of Llama.
            lora: shape of the adapter.
            seed: of the adapter's first values.

        Raises:
            SetupError: the model cannot be split into layers as this class needs it.
        """
        self.folder = model_folder
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = torch.float32 if self.device.type == "cpu" else "auto"
        base = transformers.AutoModelForCausalLM.from_pretrained(model_folder, dtype=dtype)
        layers = int(base.config.num_hidden_layers)
        self.boundary = layers - max(1, round(lora.layers * layers))
        """Layers below the first that carries LoRA."""
        self._lora, self._seed = lora, seed
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self._model = adapter.put_on(base, lora, range(self.boundary, layers)).to(self.device).eval()
        decoder = base.model
        self._lower = stack(decoder, 0, self.boundary, nn.Identity())
        self._upper = stack(decoder, self.boundary, layers, decoder.norm)
        ends = base.generation_config.eos_token_id
        self._ends = frozenset([ends] if isinstance(ends, int) else ends or ())
        self._embeddings: Tensor = base.get_input_embeddings().weight.detach()  # (V, D)
        self._head: Tensor = base.get_output_embeddings().weight.detach()  # (V, D)
        self.width = int(base.config.hidden_size)
        """D."""
        self.value_head = nn.Linear(self.width, 1).to(self.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self._memo: OrderedDict[Answer, Tensor] = OrderedDict()
        self._check_split(base)

    # --- weights

    def adapter_parameters(self) -> list[nn.Parameter]:
        """The only weights of the backbone that train."""
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]

    def load_adapter(self, folder: Path | None) -> None:
        """Takes over a version's adapter and value head; None, or no value head there, starts them afresh.

        Raises:
            AdapterRefused: it was made for another base or another shape of adapter, or is not finite.
        """
        fresh = adapter.fresh(self._adapter(), self._seed)
        value = {name: torch.zeros_like(tensor) for name, tensor in self.value_head.state_dict().items()}
        if folder is None:
            adapter.copy(fresh, self._adapter())
            adapter.copy(value, self.value_head.state_dict())
            return
        settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
        mine = self._adapter_config()
        for key in ("r", "lora_alpha", "target_modules", "layers_to_transform"):
            theirs = sorted(settings[key]) if isinstance(settings.get(key), list) else settings.get(key)
            if theirs != mine[key]:
                raise AdapterRefused("shape", f"{folder.name}: {key} is {theirs}, the learner is set to {mine[key]}")
        tensors = safetensors.torch.load_file(folder / "adapter_model.safetensors")
        if (folder / VALUE_HEAD).is_file():
            value = safetensors.torch.load_file(folder / VALUE_HEAD)
        adapter.check(folder.name, tensors, self._adapter())
        adapter.check(folder.name, value, self.value_head.state_dict())
        adapter.copy(tensors, self._adapter())
        adapter.copy(value, self.value_head.state_dict())

    def save_adapter(self, folder: Path) -> None:
        """Writes the adapter as PEFT lays it out, and the value head below ``training/``. Same weights, same bytes."""
        (folder / VALUE_HEAD).parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(
            adapter.on_cpu(self._adapter()), folder / "adapter_model.safetensors", {"format": "pt"}
        )
        safetensors.torch.save_file(adapter.on_cpu(self.value_head.state_dict()), folder / VALUE_HEAD, {"format": "pt"})
        text = json.dumps(self._adapter_config(), indent=2, sort_keys=True)
        (folder / "adapter_config.json").write_text(text + "\n", encoding="utf-8")

    @contextlib.contextmanager
    def wearing(self, name: str) -> Iterator[dict[str, Tensor]]:
        """Another adapter of the same shape in the place of the policy's, which is as it was afterwards.

        Made when it is first asked for. Yields its tensors, which share its memory; `adapter_parameters` are its own.
        """
        if name not in self._model.peft_config:
            with torch.random.fork_rng():
                self._model.add_adapter(name, copy.deepcopy(self._model.peft_config[POLICY]))
        self._model.set_adapter(name)
        try:
            yield self._adapter(name)
        finally:
            self._model.set_adapter(POLICY)

    def _adapter(self, name: str = POLICY) -> dict[str, Tensor]:
        """An adapter's tensors under the names of a PEFT file; they share memory with the model's."""
        state = cast(dict[str, Tensor], peft.get_peft_model_state_dict(self._model, adapter_name=name))
        return {name: state[name].detach() for name in sorted(state)}

    def _adapter_config(self) -> dict[str, Any]:
        settings: dict[str, Any] = self._model.peft_config[POLICY].to_dict()
        plain = {key: value for key, value in settings.items() if value is None or isinstance(value, str | int | float)}
        return plain | {
            "base_model_name_or_path": None,  # a path of this machine means nothing elsewhere
            "inference_mode": True,
            "layers_to_transform": sorted(settings["layers_to_transform"]),
            "target_modules": sorted(settings["target_modules"]),
        }

    @contextlib.contextmanager
    def whole(self) -> Iterator[Any]:
        """The backbone with its adapter as a PEFT model, for trainers that know nothing of layers apart.

        What they hang onto it (a forward of their own, training mode) is gone at the end; the weights stay.
        """
        try:
            yield self._model
        finally:
            for module in (self._model, self._model.get_base_model()):
                vars(module).pop("forward", None)
            self._model.eval()

    # --- passes

    def activations(self, pairs: Sequence[Answer]) -> list[Tensor]:
        """Activations below the adapter, one (T, D) per answer, computed once, each alone, and remembered."""
        found: dict[Answer, Tensor] = {}
        for pair in pairs:
            if pair not in found:
                known = self._memo.pop(pair, None)
                found[pair] = self.lower(Batch.of([pair], self.device))[0] if known is None else known
        self._remember(found)
        return [found[pair] for pair in pairs]

    def forget(self) -> None:
        """Lets go of all activations. Their bound is for one cycle's; those of cycles before would only fill it up."""
        self._memo.clear()

    def features(self, pairs: Sequence[Answer]) -> npt.NDArray[np.float32]:
        """What the reward model sees: (N, 2 D + 2).

        Means over the answer's tokens: of their embeddings (which words were used) and of the activations below the
        adapter (what they say). Then the answer's form, which means hide and every reader sees: log(1 + tokens), and 1
        where the model ended it itself.
        """
        means = [tokens.mean(0) for tokens in self.token_features(pairs)]
        form = [[math.log1p(len(answer)), float(answer[-1] in self._ends)] for _, answer in pairs]
        return np.hstack([np.stack(means), np.array(form, dtype=np.float32)])

    def token_features(self, pairs: Sequence[Answer]) -> list[npt.NDArray[np.float32]]:
        """Of each answer what `features` takes the means of: (A, 2 D), a row for every token."""
        rows = []
        for (prompt, answer), hidden in zip(pairs, self.activations(pairs), strict=True):
            words = self._embeddings[torch.tensor(answer, device=self.device)]  # (A, D)
            rows.append(torch.cat([words.float(), hidden[len(prompt) :].float()], dim=1).cpu().numpy())
        return rows

    @torch.no_grad()
    def lower(self, batch: Batch) -> Tensor:
        """Activations below the first LoRA layer, (B, T, D)."""
        return run(self._lower, "input_ids", batch.tokens, batch.shared, first_layer=0)

    def upper(self, hidden: Tensor, batch: Batch, *, reference: bool) -> Tensor:
        """Final, normed hidden states that predict each answer token, (B, A, D).

        Args:
            hidden: (B, T, D) from `lower` or `activations`.
            batch: the same answers.
            reference: adapter off, no gradient.
        """
        if reference:
            with torch.no_grad(), self._model.disable_adapter():
                final = run(self._upper, "inputs_embeds", hidden, batch.shared, first_layer=self.boundary)
        else:
            final = run(self._upper, "inputs_embeds", hidden, batch.shared, first_layer=self.boundary)
        index = batch.predictors[..., None].expand(-1, -1, final.shape[-1])
        return final.gather(1, index)  # (B, A, D)

    def answer_logps(
        self, final: Tensor, batch: Batch, reference: Tensor | None = None, *, entropy_grad: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Of every answer token: log-probability, entropy of its distribution and KL of that to the reference's, nats.

        Temperature 1; (B, A) each, 0 on padding. A gradient costs one more product with the head for each of entropy
        and KL: the entropy carries one if `entropy_grad`.

        Args:
            final: (B, A, D) from `upper`.
            batch: the same answers.
            reference: (B, A, D) from `upper` with the adapter off; None leaves the KL at 0.
        """
        chosen = batch.mask.bool()
        found = TokenLogp.apply(  # type: ignore[no-untyped-call]
            final[chosen],
            None if reference is None else reference[chosen],
            self._head,
            batch.answers[chosen],
            entropy_grad,
        )
        logp, entropy, kl = (torch.zeros_like(batch.mask).masked_scatter(chosen, x) for x in found)
        return logp, entropy, kl

    def states(self, final: Tensor) -> Tensor:
        """What the critic sees, (B, A, D): normed, and detached, so that values never bend the policy."""
        return functional.rms_norm(final.detach().float(), (final.shape[-1],))

    def values(self, states: Tensor) -> Tensor:
        """Expected return at every answer token, (B, A), from `states`."""
        return cast(Tensor, self.value_head(states).squeeze(-1))

    # --- inside

    def _remember(self, activations: dict[Answer, Tensor]) -> None:
        self._memo.update(activations)  # at the end: those asked for last are forgotten last
        size = sum(tensor.nbytes for tensor in self._memo.values())
        while size > _MEMO_BYTES:
            size -= self._memo.popitem(last=False)[1].nbytes

    @torch.no_grad()
    def _check_split(self, base: Any) -> None:
        """Models differ in what they do between the layers; a split that changes anything must not train."""
        size = min(16, self._head.shape[0])
        batch = Batch.of([(tuple(range(size // 2)), tuple(range(size // 2, size)))], self.device)
        whole = ppo_math.log_prob(base(batch.tokens).logits.float()[:, size // 2 - 1 : -1], batch.answers)
        split, _, _ = self.answer_logps(self.upper(self.lower(batch), batch, reference=False), batch)
        if not torch.allclose(split, whole, atol=1e-3 if self._head.dtype == torch.float32 else 0.3):
            raise SetupError(f"{type(base).__name__} does not work layer by layer as Llama does; it cannot be trained")


def _shared(pairs: Sequence[Answer]) -> int:
    """Length of the longest common beginning of the prompts, short of the last token of each."""
    prompts = [prompt[:-1] for prompt, _ in pairs]
    low, high = min(prompts), max(prompts)  # in lexical order everything between them begins as both do
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))
