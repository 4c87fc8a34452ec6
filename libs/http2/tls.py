"""TLS: identities of clients."""

import ssl
from collections.abc import Iterable, Mapping
from typing import Any


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
