"""TLS, as a caller sets it up."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import grpc


@dataclass(frozen=True, slots=True)
class TLS:
    """Files in PEM. `TLS()` trusts the machine's own CAs and shows no certificate.

    Attributes:
        ca: the CA of the server's certificate; None for the machine's own.
        certificate, private_key: what to show to a server that asks for it (mutual TLS).
        server_name: the name in the server's certificate, where it is called by another, such as 127.0.0.1.
    """

    ca: Path | str | None = None
    certificate: Path | str | None = None
    private_key: Path | str | None = None
    server_name: str = ""

    def credentials(self) -> grpc.ChannelCredentials:
        """
        Raises:
            OSError: a file cannot be read.
        """
        return grpc.ssl_channel_credentials(_pem(self.ca), _pem(self.private_key), _pem(self.certificate))


def _pem(path: Path | str | None) -> bytes | None:
    return None if path is None else Path(path).read_bytes()
