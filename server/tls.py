"""TLS for gRPC."""

from __future__ import annotations

import grpc

from thumbwheel.perimeter import CertificateFiles


def server_credentials(files: CertificateFiles) -> grpc.ServerCredentials:
    """With `security.tls_client_ca` callers must show a certificate of that CA. Changed files count at once."""

    def configuration() -> grpc.ServerCertificateConfiguration:
        key, chain, ca = files.pem()
        return grpc.ssl_server_certificate_configuration([(key, chain)], ca)

    def refresh() -> grpc.ServerCertificateConfiguration | None:
        """None: as it was."""
        return configuration() if files.changed() else None

    mutual = bool(files.security.tls_client_ca)
    return grpc.dynamic_ssl_server_credentials(configuration(), refresh, mutual)  # type: ignore[arg-type]
