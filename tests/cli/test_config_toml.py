from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from cli.config_toml import write
from thumbwheel import config

SHIPPED = Path(__file__).parents[2] / "thumbwheel.toml"


def sections(kind: type[BaseModel], path: str = "") -> Iterator[tuple[str, str | None]]:
    for name, field in kind.model_fields.items():
        yield f"{path}{name}", field.description
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from sections(field.annotation, f"{path}{name}.")


def test_every_key_has_a_documentation() -> None:
    assert [key for key, text in sections(config.Config) if not text] == []


def test_shipped_file_is_the_tree_at_its_defaults() -> None:
    assert SHIPPED.read_text(encoding="utf-8") == write(config.Config()), "run `make config`"
    assert config.load(SHIPPED, environ={}) == config.Config()


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    changed = config.load(
        Path("/dev/null"),
        ["server.grpc_port=0", "server.reflection=false", "learner.ppo.learning_rate=1e-05", 'redis.url=a"b\\c\nü'],
        environ={},
    )
    file = tmp_path / "changed.toml"
    file.write_text(write(changed), encoding="utf-8")
    assert config.load(file, environ={}) == changed
    assert tomllib.loads(file.read_text())["redis"]["url"] == 'a"b\\c\nü'
