from __future__ import annotations

import socket
from pathlib import Path

import pytest

from cli import preflight
from thumbwheel.config import Config, Learner, Server
from thumbwheel.errors import SetupError


def settings(grpc: int = 0, admin: int = 0, http: int = 0, web: int = 0, learner: int = 0) -> Config:
    server = Server(grpc_port=grpc, admin_port=admin, http_port=http, web_port=web)
    return Config(server=server, learner=Learner(http_port=learner))


def test_zero_takes_free_ports_that_differ() -> None:
    taken = preflight.take_ports(settings())
    server = taken.server
    ports = {server.grpc_port, server.admin_port, server.http_port, server.web_port, taken.learner.http_port}
    assert len(ports) == 5
    assert 0 not in ports


def test_free_port_stays() -> None:
    free = preflight.take_ports(settings()).server.grpc_port
    assert preflight.take_ports(settings(grpc=free)).server.grpc_port == free


@pytest.mark.parametrize(
    "key", ["server.grpc_port", "server.admin_port", "server.http_port", "server.web_port", "learner.http_port"]
)
def test_taken_port_is_named_with_its_key(key: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as holder:
        port = holder.getsockname()[1]
        section, _, name = key.partition(".")
        config = settings(**{"learner" if section == "learner" else name.removesuffix("_port"): port})
        with pytest.raises(SetupError, match=f"127.0.0.1:{port} \\({key}\\)") as error:
            preflight.take_ports(config)
    assert f"--set {key}=0" in str(error.value)


def test_same_port_twice() -> None:
    free = preflight.take_ports(settings()).server.grpc_port
    with pytest.raises(SetupError, match=f"both {free}"):
        preflight.take_ports(settings(grpc=free, learner=free))


def test_address_of_another_machine() -> None:
    with pytest.raises(SetupError, match=r"192\.0\.2\.1"):
        preflight.take_ports(Config(server=Server(host="192.0.2.1")))


def test_short_disk(tmp_path: Path) -> None:
    preflight.check_disk(tmp_path, 1)
    with pytest.raises(SetupError, match="the disk is short"):
        preflight.check_disk(tmp_path, 1 << 60)


def test_folder_that_takes_no_files() -> None:
    preflight.check_writable(Path("/tmp"))
    with pytest.raises(SetupError, match="cannot be written"):
        preflight.check_writable(Path("/proc"))
