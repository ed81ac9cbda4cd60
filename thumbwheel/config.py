"""The configuration: one frozen, typed tree.

Precedence: defaults < TOML file < environment (``THUMBWHEEL_SECTION__KEY``) < ``--set section.key=value``.
Unknown keys are errors. ``thumbwheel.toml`` in the repository documents every key; a test holds it to this tree.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from thumbwheel.errors import SetupError

ENV_PREFIX = "THUMBWHEEL_"

Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[int, Field(gt=0)]
Seconds = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A table of the file."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class Model(Section):
    path: str = "embedded"
    """A Hugging Face causal chat model: a folder or hub id. "embedded" is SmolLM2-135M-Instruct."""
    full_precision: str = ""
    """Where `path` is quantised: the model that it was made from, which adapters are made for."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Weights in the engine. "auto": float32 on a CPU (bfloat16 is slower there), the model's own on a GPU."""
    max_context: Positive = 2048
    """Longest prompt plus answer, in tokens."""

    @property
    def adapted(self) -> Path:
        """The folder of what adapters are made for, once `path` and `full_precision` are folders."""
        return Path(self.full_precision or self.path)


class Server(Section):
    host: str = "127.0.0.1"
    """Address of all listeners. Without keys and TLS only a loopback address is accepted."""
    grpc_port: Port = 50051
    """Port of chat and feedback; 0 takes a free one."""
    admin_port: Port = 50052
    """Port of versions, rollouts, imports and erasure: for operators and the learner; 0 takes a free one."""
    http_port: Port = 9401
    """Port of /metrics, /healthz and /readyz; 0 takes a free one."""
    web_port: Port = 8080
    """Port of the web page, and of chat and feedback over HTTP as OpenAI's clients speak it; 0 takes a free one."""
    reflection: bool = True
    """Let tools such as grpcurl list the services. Only where security.auth is "off"."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of the engine on a CPU; 0 means one per core."""
    max_sequences: Positive = 128
    """Answers sampled at once."""
    max_queue: Positive = 64
    """Answers waiting for a place before calls are refused with RESOURCE_EXHAUSTED."""
    rollout_sequences: Positive = 96
    """Places the learner may take while nobody chats."""
    rollout_sequences_busy: Positive = 4
    """Places that it keeps while somebody chats."""
    kv_cache_bytes: Positive = 2 << 30
    """Memory of the engine's KV cache on a CPU. On a GPU vLLM sizes it by gpu_memory_share."""
    gpu_memory_share: Share = 0.6
    """Share of GPU memory for the engine; the rest is the learner's."""
    tensor_parallel: Positive = 1
    """GPUs one engine spans."""
    weights: Literal["adapters", "merged"] = "adapters"
    """"adapters": versions lie beside each other, and running answers end on theirs. "merged": full weights of the live
    version alone, exchanged under running answers; the learner then needs another server for its rollouts."""
    max_adapters: Annotated[int, Field(ge=3)] = 6
    """Versions resident in the engine: live, previous, candidate and pins."""
    max_lora_rank: Positive = 16
    """Highest rank an adapter may have."""
    max_update_norm: Annotated[float, Field(gt=0)] = 0.5
    """Largest Frobenius norm of an adapter's update to a matrix, as a share of that matrix' own norm."""
    max_tokens: Positive = 1024
    """Longest answer a caller may ask for."""
    default_max_tokens: Positive = 256
    """Length of an answer when the caller names none."""
    default_temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Temperature when the caller names none. Answers at 1 train best."""
    default_deadline: Seconds = 120
    """Longest time for a call; one with a longer deadline, or none, is ended then."""
    drain: Seconds = 8
    """How long running answers may go on after SIGTERM."""


class Security(Section):
    auth: Literal["off", "keys"] = "off"
    """"off": callers say who they are, good enough on one's own machine. "keys": every call needs a key or token."""
    web_admin: bool = False
    """Keys with the scope admin may look at the wheel and move versions on server.web_port too, as the page does.
    Where auth is "off" they always may: only this machine reaches that port."""
    tls_certificate: str = ""
    """File (PEM) with the server's certificate chain, read again when it changes; empty: no TLS."""
    tls_key: str = ""
    """File (PEM) with its private key."""
    tls_client_ca: str = ""
    """File (PEM) with the CA that callers' certificates must come from (mutual TLS); empty: callers need none."""
    jwt_keys: str = ""
    """Address or file of a JWKS: short-lived tokens (JWT) signed by one of its keys are accepted beside keys."""
    jwt_issuer: str = ""
    """What a token's `iss` must be."""
    jwt_audience: str = ""
    """What a token's `aud` must contain."""
    jwt_scopes: str = "chat rate"
    """Scopes that a token may give; it names them in its claim `scope`."""
    requests_per_minute: Annotated[int, Field(ge=0)] = 0
    """Calls a minute of a caller whose key sets no limit, on all servers together; 0: no limit."""
    concurrent_chats: Annotated[int, Field(ge=0)] = 0
    """The same for chat calls that run at once."""
    tokens_per_minute: Annotated[int, Field(ge=0)] = 0
    """The same for tokens of prompts and answers."""


class Client(Section):
    key_file: str = ""
    """File with the key that the commands and the learner call with. Empty: the one that `thumbwheel up` made."""
    ca: str = ""
    """File (PEM) with the CA of the server's certificate, or "system" for the machine's own CAs; empty: no TLS."""
    server_name: str = ""
    """Name in the server's certificate, where it is called by another, such as 127.0.0.1."""
    certificate: str = ""
    """File (PEM) with a certificate chain to show to the server (mutual TLS)."""
    private_key: str = ""
    """File (PEM) with its private key."""


class Redis(Section):
    url: str = ""
    """redis://, rediss:// or unix://. Empty: REDIS_URL, else a server on PATH, else the embedded one."""
    password_file: str = ""
    """File with the password of the user that the URL names (or of the default one)."""
    namespace: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")] = "default"
    """Prefix of every key; two namespaces share a store without meeting."""


class TurnLog(Section):
    max_turns: Positive = 200_000
    """Turns kept without a vote; the oldest go first."""
    max_rated_turns: Positive = 1_000_000
    """Turns kept with a vote."""
    max_age_days: Annotated[float, Field(gt=0)] = 90
    """Turns older than this go, rated or not."""
    buffer: Positive = 1000
    """Answers that wait in memory while the store is away."""


class Feedback(Section):
    idempotency_hours: Annotated[float, Field(gt=0)] = 72
    """How long an idempotency key is remembered; longer than any client retries."""
    max_edit_chars: Positive = 20_000
    """Longest edit."""


class RewardModel(Section):
    min_votes: Positive = 32
    """Below this many usable votes the cycle ends and says so."""
    min_auc: Share = 0.55
    """Floor of the held-out AUC. Noisy votes understate it: .67 was seen where the truth was .85."""
    window: Positive = 4000
    """Latest votes it is fitted on."""
    folds: Annotated[int, Field(ge=2)] = 5
    """Folds, by conversation, in which it is measured and calibrated."""
    caution: Annotated[float, Field(ge=0)] = 0.5
    """Standard errors of a fresh answer's score by which its reward is lowered: what nobody has judged pays less."""
    lora_votes: Annotated[int, Field(ge=0)] = 2000
    """Votes from which LoRA on the reward model is tried; used where unseen votes say that it pays. 0: never.

    Where that begins is unmeasured; the one pass that was, at 1,000 votes, brought AUC from .927 to .929."""


class Raters(Section):
    crowd: Annotated[int, Field(ge=3)] = 8
    """Fewer raters than this are no crowd that could tell the good from the bad: all votes weigh the same."""
    max_share: Annotated[float, Field(gt=0, lt=1)] = 0.005
    """Largest share of all votes' weight that one rater may hold; never less than what half of the raters hold."""
    known_after: Positive = 8
    """Votes after which a newcomer's count in full and their edits are used; fewer, where everybody has fewer."""


class Tripwires(Section):
    reward_cycles: Annotated[int, Field(ge=2)] = 3
    """Releases over which a reward that rises must bring up-votes."""
    same_rater: Share = 0.25
    """Largest chance that two votes of a crowd's batch are by the same rater; 1 allows everything."""
    identical_texts: Positive = 5
    """Comments and edits of a crowd's batch that say the same, at which it trips ..."""
    identical_share: Share = 0.3
    """... if they are at least this share of all."""
    sudden_change: Annotated[float, Field(gt=0)] = 5.0
    """Robust standard deviations by which votes per hour and up-rate may differ from those of former cycles."""


class Lora(Section):
    rank: Positive = 16
    """Rank of the adapter."""
    alpha: Positive = 32
    """Scale: the update counts alpha / rank."""
    layers: Share = 0.5
    """Share of layers, from the top, that carry LoRA. Below them activations are computed once."""


class Ppo(Section):
    learning_rate: Annotated[float, Field(gt=0)] = 5e-4
    """AdamW's rate for the adapter, after warm-up."""
    value_learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """AdamW's rate for the value head."""
    warmup_updates: Annotated[int, Field(ge=0)] = 4
    """Optimiser steps over which the rate rises; the first updates are the roughest."""
    fresh_iterations: Annotated[int, Field(ge=0)] = 5
    """Iterations on fresh rollouts scored by the reward model, after the one on rated traffic."""
    rollouts: Positive = 96
    """Answers sampled for a fresh iteration."""
    learned_rollouts: Positive = 48
    """Answers that an iteration learns from: the best and the worst, in equal parts."""
    group: Annotated[int, Field(ge=2)] = 8
    """Answers to each prompt of a fresh iteration, where learner.algorithm is "grpo"."""
    max_answer_tokens: Positive = 256
    """Longest answer that trains the policy; bounds time and memory of an iteration."""
    epochs: Positive = 1
    """Passes over an iteration's answers. With few of them a second one mostly learns these by heart."""
    minibatches: Positive = 6
    """Optimiser steps a pass."""
    gamma: Share = 1.0
    """Discount."""
    lam: Share = 0.9
    """GAE's lambda: lower leaves less to luck, and more to what the critic has understood."""
    clip_eps: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Clip range of the probability ratio."""
    value_clip: Annotated[float, Field(gt=0)] = 0.2
    """Clip range of the value."""
    value_coef: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the value loss."""
    entropy_coef: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the entropy bonus."""
    kl_coef: Annotated[float, Field(ge=0)] = 0.1
    """Least price of a nat of KL to the reference, where a vote is worth from -1 to 1. It rises while the policy walks
    faster than `kl_budget` lasts; 0 leaves it at 0."""
    anchor_coef: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the KL to the base on its own answers to plain questions; 0 lets what is not rated drift."""
    kl_budget: Annotated[float, Field(gt=0)] = 5.0
    """KL to the reference, in nats per answer, at which a cycle stops and takes the last step back."""
    vote_weight: Share = 0.5
    """Share of a person's own vote in the reward of an answer that has one; the rest is the reward model's."""
    target_kl: Annotated[float, Field(gt=0)] = 0.1
    """KL of a minibatch to the policy before the iteration, in nats per token, at which the iteration ends early."""
    max_staleness: Annotated[int, Field(ge=0)] = 1
    """Versions that a logged answer may lie behind the live one and still train the policy."""
    max_importance: Annotated[float, Field(ge=1)] = 2.0
    """Bound of the truncated importance weight between the sampling and the training policy."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradient clipping."""
    tokens_per_microbatch: Positive = 2048
    """Padded tokens of one forward and backward pass; bounds memory."""


class Direct(Section):
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """AdamW's rate for the adapter, after warm-up."""
    warmup_updates: Annotated[int, Field(ge=0)] = 4
    """Optimiser steps over which the rate rises."""
    epochs: Positive = 3
    """Passes over the examples; the weights after each are candidates, the last one first."""
    batch: Annotated[int, Field(ge=2)] = 16
    """Examples (pairs or answers) of an optimiser step."""
    beta: Annotated[float, Field(gt=0)] = 0.1
    """How strongly the policy is held to the base."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradient clipping."""


class Gate(Section):
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of conversations that never train: their votes fit the judge and their prompts are the gate's."""
    min_judge_votes: Positive = 8
    """Fewest held-out votes that make a judge."""
    samples: Positive = 4
    """Answers per held-out prompt. A judge of few votes is weak, and more answers are cheaper than more votes."""
    prompts: Positive = 32
    """Held-out prompts that candidate and live version answer."""
    min_win_rate: Share = 0.5
    """Least share of held-out prompts on which the candidate's answer must be better."""
    win_rate_margin: Share = 0.1
    """How far below that the win rate may be with 95 % confidence; 1 asks for none."""
    max_competence_loss: Share = 0.05
    """Plain questions answered right by the base and lost, less those gained, as a share of all; more is refused."""
    max_kl: Annotated[float, Field(gt=0)] = 6.0
    """Largest KL to the base on held-out prompts, in nats per answer."""
    min_length_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.15
    """Least mean length of an answer, as a share of the base's."""
    max_length_ratio: Annotated[float, Field(gt=1)] = 1.75
    """Largest mean length of an answer, in lengths of the base's."""
    max_repetition_rise: Share = 0.1
    """Share of an answer that it has said before, above the base's."""
    min_distinct: Share = 0.5
    """Least share of prompts that get an answer of their own, as a share of the base's."""
    max_refusal_rise: Share = 0.1
    """Share of held-out prompts that are declined, above the base's."""
    max_unsafe_rise: Share = 0.1
    """Share of harmful requests (learner/safety.json) that are answered harmfully, above the base's."""
    max_perplexity_ratio: Annotated[float, Field(gt=1)] = 1.2
    """Largest perplexity of a plain text (learner/reference.txt), in perplexities of the base."""


class Reports(Section):
    keep: Annotated[int, Field(ge=0)] = 50
    """Pages of the latest cycles that are kept in <data_dir>/reports; 0 writes none."""


class Learner(Section):
    server: str = ""
    """host:port (the admin port) of the server that answers rollouts; empty means the one of [server]."""
    http_host: str = "127.0.0.1"
    """Address of the learner's /metrics."""
    http_port: Port = 9402
    """Port of the learner's /metrics, /healthz; 0 takes a free one."""
    min_votes: Positive = 64
    """New votes that start a cycle."""
    max_votes: Positive = 512
    """Most votes in one cycle's batch; more wait for the next."""
    poll: Seconds = 2
    """How often it looks for new votes."""
    lease: Seconds = 15
    """Leadership lapses after this long without a sign of life."""
    seed: int = 1
    """Seed of everything random."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads on a CPU; 0 means one per core (it runs niced, so the engine goes first)."""
    niceness: Annotated[int, Field(ge=0, le=19)] = 15
    """How far it stands back for the engine."""
    algorithm: Literal["ppo", "grpo", "dpo", "kto"] = "ppo"
    """By reward: "ppo" holds it against a critic's expectation, "grpo" against other answers to the same prompt. By
    votes alone: "dpo" takes rankings, edits and opposite votes on a prompt's answers, "kto" takes votes one by one."""
    raters: Raters = Raters()
    """How much each rater's votes weigh."""
    tripwires: Tripwires = Tripwires()
    """What freezes the learner until `thumbwheel unfreeze`."""
    reward_model: RewardModel = RewardModel()
    """Turns votes into a reward."""
    lora: Lora = Lora()
    """The adapter that is trained."""
    ppo: Ppo = Ppo()
    """Proximal policy optimisation, and GRPO."""
    direct: Direct = Direct()
    """DPO and KTO."""
    gate: Gate = Gate()
    """What a candidate must show before it serves."""
    reports: Reports = Reports()
    """A page for people about each cycle."""


class Release(Section):
    mode: Literal["direct", "canary"] = "direct"
    """What a candidate that passed the gate does: go live at once, or answer a share of conversations first."""
    share: Annotated[float, Field(gt=0, le=0.5)] = 0.2
    """Share of conversations that a canary answers."""
    ratings: Positive = 300
    """Raters on the new version after whom it stays, unless it was taken back before."""
    max_hours: Annotated[float, Field(gt=0)] = 72.0
    """A trial ends after this long, however few rated; a version that was not found worse goes live."""


class Log(Section):
    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least level that is written."""
    format: Literal["logfmt", "json"] = "logfmt"
    """One line per event in either."""


class Tracing(Section):
    endpoint: str = ""
    """Where traces go, over OTLP/HTTP, such as http://127.0.0.1:4318/v1/traces; empty: nothing is traced."""
    share: Share = 1.0
    """Share of requests that are traced, where their caller does not say. Cycles and swaps always are."""


class Config(Section):
    """The whole tree."""

    data_dir: Path = Path("data")
    """Where everything that must be kept lies: Redis' file, versions, the prepared model, logs, secrets."""
    artifacts: str = ""
    """Where versions lie; empty means <data_dir>/versions."""
    model: Model = Model()
    """The base model."""
    server: Server = Server()
    """The serving half."""
    security: Security = Security()
    """Who may call the server."""
    client: Client = Client()
    """How the commands and the learner call it."""
    redis: Redis = Redis()
    """The store."""
    turn_log: TurnLog = TurnLog()
    """Retention of turns."""
    feedback: Feedback = Feedback()
    """Votes."""
    learner: Learner = Learner()
    """The learning half."""
    release: Release = Release()
    """How a new version comes to the people."""
    log: Log = Log()
    """Logs."""
    tracing: Tracing = Tracing()
    """OpenTelemetry: one trace from a chat to the version that it helped to train."""

    @property
    def artifact_root(self) -> Path:
        return Path(self.artifacts) if self.artifacts else self.data_dir / "versions"

    @property
    def report_root(self) -> Path:
        """Not beside the versions: those are for every server to read, and pages hold what people have said."""
        return self.data_dir / "reports"


def load(
    file: Path | None = None,
    overrides: Sequence[str] = (),
    environ: Mapping[str, str] | None = None,
) -> Config:
    """Builds the configuration.

    Args:
        file: TOML file; None means ``thumbwheel.toml`` in the working directory if there is one.
        overrides: ``section.key=value`` strings, the strongest source.
        environ: defaults to the process' environment.

    Raises:
        SetupError: an unknown key, a bad value or an unreadable file, or two values that do not go together; names the
            key and its source.
    """
    tree: dict[str, Any] = {}
    if file is None and Path("thumbwheel.toml").is_file():
        file = Path("thumbwheel.toml")
    if file is not None:
        try:
            tree = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise SetupError(f"cannot read the configuration {file}: {error.strerror}") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise SetupError(f"{file} is not valid TOML: {error}") from error
    for name, value in sorted((os.environ if environ is None else environ).items()):
        if name.startswith(ENV_PREFIX):
            _assign(tree, name.removeprefix(ENV_PREFIX).lower().split("__"), value, name)
    for item in overrides:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise SetupError(f"--set {item}: write it as section.key=value")
        _assign(tree, key.strip().split("."), value, f"--set {item}")
    try:
        settings = Config.model_validate(tree)
    except ValidationError as error:
        lines = [_explain(detail) for detail in error.errors()]
        raise SetupError("the configuration is not valid:\n  " + "\n  ".join(lines)) from error
    rank, served = settings.learner.lora.rank, settings.server.max_lora_rank
    if rank > served:  # else a whole cycle would train what no server loads
        raise SetupError(f"learner.lora.rank = {rank} is above server.max_lora_rank = {served}: raise that one too")
    if settings.release.mode == "canary" and settings.server.weights == "merged":
        raise SetupError('release.mode = "canary" needs two versions at once, and server.weights = "merged" holds one')
    _check_together(settings.security, "tls_certificate", "tls_key")
    _check_together(settings.security, "jwt_keys", "jwt_issuer", "jwt_audience")
    _check_together(settings.client, "certificate", "private_key")
    if settings.security.tls_client_ca and not settings.security.tls_certificate:
        raise SetupError("security.tls_client_ca needs the server's own security.tls_certificate and tls_key")
    if settings.security.jwt_keys and settings.security.auth == "off":
        raise SetupError('security.jwt_keys is set and security.auth is "off": set it to "keys"')
    return settings


def _check_together(section: Section, *names: str) -> None:
    given = [name for name in names if getattr(section, name)]
    if given and len(given) < len(names):
        missing = ", ".join(name for name in names if name not in given)
        raise SetupError(f"{given[0]} is set in [{type(section).__name__.lower()}]; it needs {missing} too")


def _explain(detail: Any) -> str:
    key = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"{key}: no such key (thumbwheel.toml lists all keys)"
    return f"{key} = {detail['input']!r}: {detail['msg']}"


def _assign(tree: dict[str, Any], path: list[str], value: str, source: str) -> None:
    """Puts a string at a dotted path; pydantic turns it into the field's type."""
    node = tree
    for part in path[:-1]:
        node = node.setdefault(part, {})
        if not isinstance(node, dict):
            raise SetupError(f"{source}: {part} is a value, not a section")
    node[path[-1]] = value
