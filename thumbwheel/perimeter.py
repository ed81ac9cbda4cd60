"""What a listener must have before it may be reached from other machines: TLS, and callers who prove who they are."""

from __future__ import annotations

import ipaddress
import ssl
from pathlib import Path

from thumbwheel import config
from thumbwheel.errors import SetupError
from thumbwheel.secret_files import read_file


def require_closed(host: str, security: config.Security, key: str) -> None:
    """
    Args:
        key: the configuration's key that names the host, for the error.

    Raises:
        SetupError: `host` can be reached from other machines (or is a name that could be), without TLS or keys.
    """
    if is_loopback(host) or (security.tls_certificate and security.auth != "off"):
        return
    raise SetupError(
        f"{key} = {host!r}: without keys and TLS anybody who reaches this address could read, rate and roll back.\n"
        "  Use a loopback address (127.0.0.1, ::1, localhost), or set security.auth, tls_certificate and tls_key"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address."""
    bare = host.removeprefix("[").removesuffix("]")
    try:
        return bare == "localhost" or ipaddress.ip_address(bare).is_loopback
    except ValueError:
        return False


def reachable(host: str) -> str:
    """Where this machine reaches a listener on `host`; a listener on every address is reached over loopback."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]", "[::]": "[::1]"}.get(host, host)


class CertificateFiles:
    """The server's certificate on disk, and whether it has changed since it was last looked at.

    Args:
        mutual: whether callers of `context` need a certificate where `security.tls_client_ca` is set.

    Raises:
        SetupError: the files cannot be read, or do not belong together.
    """

    def __init__(self, security: config.Security, *, mutual: bool = False) -> None:
        self.security = security
        self._mutual = mutual
        self._paths = [
            Path(path).expanduser()
            for path in (security.tls_certificate, security.tls_key, security.tls_client_ca)
            if path
        ]
        self.context = self._load()
        self._times = self._look()

    @classmethod
    def of(cls, security: config.Security, *, mutual: bool = False) -> CertificateFiles | None:
        """None where no TLS is set up."""
        return cls(security, mutual=mutual) if security.tls_certificate else None

    def changed(self) -> bool:
        """True once for every change that is complete; `context` serves the new certificate from then on.

        A new CA of callers' counts there beside the old one, which goes with the next start.

        A file that is just being replaced is not there or not whole: the next look will see it.
        """
        try:
            times = self._look()
            if times == self._times:
                return False
            self._load()  # a trial, for the context that serves must not be left with half of a pair
            self._fill(self.context)
        except (OSError, SetupError):
            return False
        self._times = times
        return True

    def pem(self) -> tuple[bytes, bytes, bytes | None]:
        """Private key, certificate chain, and the CA of callers' certificates."""
        names = ("tls_key", "tls_certificate", "tls_client_ca")
        key, chain, ca = (getattr(self.security, name) for name in names)
        read = read_file(key, "security.tls_key"), read_file(chain, "security.tls_certificate")
        return *read, read_file(ca, "security.tls_client_ca") if ca else None

    def _load(self) -> ssl.SSLContext:
        """For HTTP. The metrics page needs no certificate of its callers: probes have none, and it asks for a key."""
        self.pem()  # says which file it is that cannot be read
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            self._fill(context)
        except ssl.SSLError as error:
            raise SetupError(
                f"security.tls_certificate and tls_key cannot be used ({error.reason}): are they PEM, and a pair?"
            ) from error
        return context

    def _fill(self, context: ssl.SSLContext) -> None:
        context.load_cert_chain(self._paths[0], self._paths[1])
        if self._mutual and self.security.tls_client_ca:
            try:
                context.load_verify_locations(self._paths[2])
            except ssl.SSLError as error:
                raise SetupError(f"security.tls_client_ca cannot be used ({error.reason}): is it PEM?") from error
            context.verify_mode = ssl.CERT_REQUIRED

    def _look(self) -> list[int]:
        return [path.stat().st_mtime_ns for path in self._paths]
