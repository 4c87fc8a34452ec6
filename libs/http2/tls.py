"""TLS: certificates of the server, and identities of clients."""

import ssl
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

# For TLS 1.2; all ciphers of 1.3 are as strong. No CBC, no SHA-1, no key exchange without forward secrecy.
CIPHERS = "ECDHE+AESGCM:ECDHE+CHACHA20"


@dataclass(frozen=True)
class Tls:
    """The files of a server's certificate and key, in PEM.

    With `client_ca_file` a client must have a certificate signed by one of these CAs; with `is_client_optional` it may
    have none.
    """

    cert_file: Path
    key_file: Path
    client_ca_file: Path | None = None
    is_client_optional: bool = field(default=False, kw_only=True)

    def context(self, protocol: str = "h2") -> ssl.SSLContext:
        """Read the files; `protocol` is that of ALPN. Raises: OSError, ssl.SSLError."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        context.set_alpn_protocols([protocol])
        context.load_cert_chain(self.cert_file, self.key_file)
        if self.client_ca_file is not None:
            context.load_verify_locations(self.client_ca_file)
            context.verify_mode = ssl.CERT_OPTIONAL if self.is_client_optional else ssl.CERT_REQUIRED
        return context

    def changed(self) -> tuple[int, ...]:
        """Return when each file was last changed, in ns. Raises: OSError."""
        files = filter(None, (self.cert_file, self.key_file, self.client_ca_file))
        return tuple(file.stat().st_mtime_ns for file in files)


def auth_context(ssl_object: Any) -> Mapping[str, Iterable[bytes]]:
    """Return the properties of a client's certificate as grpcio's server does; none without TLS."""
    if ssl_object is None:
        return {}
    found: dict[str, list[bytes]] = {"transport_security_type": [b"ssl"]}
    certificate = ssl_object.getpeercert()
    if not certificate:
        return found
    alternatives = certificate.get("subjectAltName", ())
    names = [value.encode() for _, value in alternatives]
    uris = [value.encode() for kind, value in alternatives if kind == "URI"]
    dns = [value.encode() for kind, value in alternatives if kind == "DNS"]
    common = [value.encode() for part in certificate.get("subject", ()) for name, value in part if name == "commonName"]
    spiffe = [name for name in uris if name.startswith(b"spiffe://")]
    found["x509_pem_cert"] = [ssl.DER_cert_to_PEM_cert(ssl_object.getpeercert(binary_form=True)).encode()]
    if names:
        found["x509_subject_alternative_name"] = names
    if uris:
        found["peer_uri"] = uris
    if dns:
        found["peer_dns"] = dns
    if common:
        found["x509_common_name"] = common
    if len(spiffe) == 1:
        found["peer_spiffe_id"] = spiffe
    return found
