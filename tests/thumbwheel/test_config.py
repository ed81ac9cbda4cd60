from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from pydantic import ValidationError

from thumbwheel.config import Config, load
from thumbwheel.errors import SetupError


def loaded(
    tmp_path: Path, text: str = "", overrides: Sequence[str] = (), environ: Mapping[str, str] | None = None
) -> Config:
    file = tmp_path / "some.toml"
    file.write_text(text, encoding="utf-8")
    return load(file, overrides, environ or {})


def test_each_source_is_stronger_than_the_one_before(tmp_path: Path) -> None:
    text = "[server]\ngrpc_port = 1\nhttp_port = 1\nmax_queue = 1\n"
    environ = {"THUMBWHEEL_SERVER__HTTP_PORT": "2", "THUMBWHEEL_SERVER__MAX_QUEUE": "2", "OTHER": "3"}
    server = loaded(tmp_path, text, ["server.max_queue=3"], environ).server
    assert (server.grpc_port, server.http_port, server.max_queue) == (1, 2, 3)
    assert server.max_sequences == Config().server.max_sequences


def test_deep_keys_from_every_source(tmp_path: Path) -> None:
    environ = {"THUMBWHEEL_LEARNER__PPO__CLIP_EPS": "0.3"}
    ppo = loaded(tmp_path, "[learner.ppo]\nepochs = 9", ["learner.ppo.lam = 0.5"], environ).learner.ppo
    assert (ppo.epochs, ppo.clip_eps, ppo.lam) == (9, 0.3, 0.5)


def test_the_file_of_the_working_directory_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load(environ={}) == Config()
    (tmp_path / "thumbwheel.toml").write_text('data_dir = "elsewhere"')
    assert load(environ={}).data_dir == Path("elsewhere")


def test_the_environment_of_the_process_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("THUMBWHEEL_REDIS__NAMESPACE", "mine")
    assert load().redis.namespace == "mine"


@pytest.mark.parametrize(
    ("text", "overrides", "environ", "key"),
    [
        ("[server]\nprot = 1", [], {}, "server.prot"),
        ("nonsense = 1", [], {}, "nonsense"),
        ("", ["learner.ppo.epoch=2"], {}, "learner.ppo.epoch"),
        ("", [], {"THUMBWHEEL_SERVER__PROT": "1"}, "server.prot"),
        ("", [], {"THUMBWHEEL_NONSENSE": "1"}, "nonsense"),
    ],
)
def test_unknown_keys_are_refused(
    tmp_path: Path, text: str, overrides: list[str], environ: dict[str, str], key: str
) -> None:
    with pytest.raises(SetupError, match=f"{key}: no such key"):
        loaded(tmp_path, text, overrides, environ)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("server.grpc_port=70000", "server.grpc_port"),
        ("server.grpc_port=many", "server.grpc_port"),
        ("server.max_queue=0", "server.max_queue"),
        ("learner.ppo.clip_eps=nan", "learner.ppo.clip_eps"),
        ("learner.ppo.kl_budget=inf", "learner.ppo.kl_budget"),
        ("redis.namespace=a{b}", "redis.namespace"),
        ("log.format=xml", "log.format"),
        ("learner.algorithm=reinforce", "learner.algorithm"),
        ("server=5", "server"),
    ],
)
def test_bad_values_are_named(tmp_path: Path, override: str, key: str) -> None:
    with pytest.raises(SetupError, match=rf"^the configuration is not valid:\n  {key} = "):
        loaded(tmp_path, "", [override])


def test_every_mistake_is_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(SetupError) as caught:
        loaded(tmp_path, "nonsense = 1", ["server.max_queue=0"])
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("override", ["server.grpc_port", "=1", ""])
def test_an_override_that_is_none(tmp_path: Path, override: str) -> None:
    with pytest.raises(SetupError, match=r"section\.key=value"):
        loaded(tmp_path, "", [override])


def test_a_value_is_not_a_section(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="grpc_port is a value"):
        loaded(tmp_path, "[server]\ngrpc_port = 1", ["server.grpc_port.x=1"])


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match="cannot read"):
        load(tmp_path / "none.toml", environ={})
    (tmp_path / "bad.toml").write_bytes(b"[server\n")
    with pytest.raises(SetupError, match="not valid TOML"):
        load(tmp_path / "bad.toml", environ={})
    (tmp_path / "latin.toml").write_bytes(b'data_dir = "\xe9"')
    with pytest.raises(SetupError, match="not valid TOML"):
        load(tmp_path / "latin.toml", environ={})


def test_the_tree_is_frozen() -> None:
    with pytest.raises(ValidationError):
        Config().server.grpc_port = 1  # type: ignore[misc]


def test_versions_lie_in_the_data_directory_unless_told_otherwise(tmp_path: Path) -> None:
    assert loaded(tmp_path, 'data_dir = "d"').artifact_root == Path("d/versions")
    assert loaded(tmp_path, 'artifacts = "a"').artifact_root == Path("a")


def test_a_rank_that_no_server_would_load_is_refused() -> None:
    with pytest.raises(SetupError, match=r"learner\.lora\.rank = 32 is above server\.max_lora_rank = 16"):
        load(Path("/dev/null"), ["learner.lora.rank=32"], {})
    both = load(Path("/dev/null"), ["learner.lora.rank=32", "server.max_lora_rank=32"], {})
    assert both.learner.lora.rank == 32


def test_a_canary_needs_an_engine_that_holds_two_versions(tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"release\.mode"):
        loaded(tmp_path, "", ["release.mode=canary", "server.weights=merged"])
