"""What is looked at before anything is started, so that a wrong set-up ends in one clear sentence."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from pathlib import Path

from thumbwheel.config import Config
from thumbwheel.errors import SetupError
from thumbwheel.perimeter import CertificateFiles, require_closed

ROOM = 512 << 20
"""Bytes that must be free on disk beside a model that is still to be prepared: for votes, versions and logs."""


def check_writable(folder: Path) -> None:
    """
    Raises:
        SetupError: no file can be made in the folder.
    """
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SetupError(
            f"the data directory {folder} cannot be written: {error.strerror}\n  choose another with --data-dir"
        ) from error


def check_disk(folder: Path, need: int) -> None:
    """
    Args:
        need: bytes.

    Raises:
        SetupError: less is free.
    """
    free = shutil.disk_usage(folder).free
    if free < need:
        raise SetupError(
            f"the disk is short: {free / 1e9:.1f} GB free for {folder}, {need / 1e9:.1f} GB needed\n"
            "  make room, or choose another with --data-dir"
        )


def check_rollouts(settings: Config) -> None:
    """
    Raises:
        SetupError: the server would refuse the learner here the versions that it learns with.
    """
    if settings.server.weights == "merged":
        raise SetupError(
            'server.weights is "merged": such a server answers with the live version alone, and the learner beside it\n'
            "  could not try a new one. Start it with `thumbwheel serve`, and the learner where a server holds adapters"
        )


def check_perimeter(settings: Config) -> None:
    """
    Raises:
        SetupError: an address can be reached from the network without TLS and keys, a certificate cannot be used, or
            nothing says how the learner here shall know it.
    """
    require_closed(settings.server.host, settings.security, "server.host")
    require_closed(settings.learner.http_host, settings.security, "learner.http_host")
    CertificateFiles.of(settings.security)
    if settings.security.tls_certificate and not settings.client.ca:
        raise SetupError(
            "security.tls_certificate is set, and client.ca is not: name the CA (PEM) by which the learner and the\n"
            '  commands know the server, or "system"'
        )


def take_ports(settings: Config) -> Config:
    """Sees that the ports are free, and chooses one where 0 is given: they must stay the same when a child restarts.

    Raises:
        SetupError: one is taken, or the address is not this machine's.
    """
    places = {
        "server.grpc_port": (settings.server.host, settings.server.grpc_port),
        "server.admin_port": (settings.server.host, settings.server.admin_port),
        "server.http_port": (settings.server.host, settings.server.http_port),
        "server.web_port": (settings.server.host, settings.server.web_port),
        "learner.http_port": (settings.learner.http_host, settings.learner.http_port),
    }
    sockets: list[socket.socket] = []
    ports: dict[str, int] = {}
    try:
        for key, (host, port) in places.items():
            probe = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
            sockets.append(probe)  # kept open, so that no port is chosen twice
            port = _bind(probe, host, port, key)
            for other, taken in ports.items():
                if taken == port:
                    raise SetupError(f"{other} and {key} are both {port}")
            ports[key] = port
    finally:
        for probe in sockets:
            probe.close()
    server = settings.server.model_copy(
        update={name: ports[f"server.{name}"] for name in ("grpc_port", "admin_port", "http_port", "web_port")}
    )
    learner = settings.learner.model_copy(update={"http_port": ports["learner.http_port"]})
    return settings.model_copy(update={"server": server, "learner": learner})


def _bind(probe: socket.socket, host: str, port: int, key: str) -> int:
    if port:  # Connections of a server that was here a moment ago do not count; one that listens does.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((host.strip("[]"), port))
    except OSError as error:
        raise SetupError(
            f"cannot listen on {host}:{port} ({key}): {os.strerror(error.errno or 0)}\n"
            f"  stop what listens there, or choose another: --set {key}=0 takes a free one"
        ) from error
    return int(probe.getsockname()[1])
