"""Certificates for trying TLS, of a server and of clients, and a token."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

DAYS = 365
SPIFFE = "spiffe://parlor.example/"
CLIENTS = ("bot", "dashboard", "operator", "booking", "messaging", "stats")
SERVERS = ("postgres", "valkey", "booking", "messaging", "stats")  # hosts of docker-compose.yml
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")
BEARER, AUDIENCE = "dashboard", "parlor"  # of the token
SETTINGS = {  # of a service that uses the files; booking's are those of messaging, which calls booking
    "TLS_CERT_FILE": "server.pem",
    "TLS_KEY_FILE": "server.key",
    "TLS_CLIENT_CA_FILE": "ca.pem",
    "AUTH_JWKS": "jwks.json",
    "BOOKING_TLS_CA_FILE": "ca.pem",
    "BOOKING_TLS_CERT_FILE": "messaging.pem",
    "BOOKING_TLS_KEY_FILE": "messaging.key",
}


class FolderInUse(Exception):
    """The folder has files that were not made here."""


@dataclass(frozen=True)
class Authority:
    """A CA."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def new(cls) -> "Authority":
        """Make one that may sign no other CA."""
        key, name = ec.generate_private_key(ec.SECP256R1()), _name("Parlor development CA")
        usage = x509.KeyUsage(False, False, False, False, False, True, True, False, False)
        builder = _builder(name, name, key.public_key()).add_extension(x509.BasicConstraints(True, 0), critical=True)
        return cls(key, builder.add_extension(usage, critical=True).sign(key, SHA256()))

    @classmethod
    def read(cls, folder: Path) -> "Authority":
        """Read that of a folder. Raises: OSError, ValueError."""
        return cls(_read_key(folder / "ca.key"), x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes()))

    def issue(self, common_name: str, names: Sequence[x509.GeneralName], *, serves: bool) -> tuple[bytes, bytes]:
        """Return a certificate and its key, both PEM, for a client and, if it `serves`, for a server, too."""
        key = ec.generate_private_key(ec.SECP256R1())
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH] + ([ExtendedKeyUsageOID.SERVER_AUTH] if serves else [])
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        certificate = (
            _builder(_name(common_name), self.certificate.subject, key.public_key())
            .add_extension(x509.BasicConstraints(False, None), critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(issuer, critical=False)
            .sign(self.key, SHA256())
        )
        return certificate.public_bytes(Encoding.PEM), _pem(key)


def write_certificates(folder: Path) -> list[Path]:
    """Write `ca`, `server` and a certificate of each client, as NAME.pem and NAME.key; return the certificates' files.

    The CA of the folder is used again, so that what it signed before stays valid. `server` is for localhost and for the
    hosts of docker-compose.yml. A client's name is spiffe://parlor.example/NAME. Raises: OSError, ValueError;
    FolderInUse if the folder has files but no CA.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (folder / "ca.key").exists():
        authority = Authority.read(folder)
    elif any(folder.glob("*.pem")) or any(folder.glob("*.key")):
        raise FolderInUse(f"{folder} has certificates or keys, but no ca.key of `parlor dev-certs`")
    else:
        authority = Authority.new()
        _write(folder, "ca", authority.certificate.public_bytes(Encoding.PEM), _pem(authority.key))
    hosts: list[x509.GeneralName] = [_host(name) for name in (*LOCAL_NAMES, *SERVERS)]
    _write(folder, "server", *authority.issue("localhost", hosts, serves=True))
    for client in CLIENTS:
        uri = x509.UniformResourceIdentifier(f"{SPIFFE}{client}")
        _write(folder, client, *authority.issue(client, [uri], serves=False))
    return [folder / f"{name}.pem" for name in ("ca", "server", *CLIENTS)]


def write_token(folder: Path) -> list[Path]:
    """Write `dashboard.jwt`, a token valid for a year, and `jwks.json`, its key; return the files.

    Its name is that of dashboard's certificate, whose key signs it: write_certificates comes first. Raises: OSError,
    ValueError.
    """
    key = _read_key(folder / f"{BEARER}.key")
    claims = {"sub": f"{SPIFFE}{BEARER}", "aud": AUDIENCE, "exp": datetime.now(UTC) + timedelta(days=DAYS)}
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    token, keys = folder / f"{BEARER}.jwt", folder / "jwks.json"
    token.unlink(missing_ok=True)
    token.touch(mode=0o600)
    token.write_text(jwt.encode(claims, key, "ES256"))
    keys.write_text(json.dumps({"keys": [{**public, "alg": "ES256", "use": "sig"}]}))
    return [token, keys]


def settings(folder: Path, policy: Path) -> dict[str, str]:
    """Return the settings of a service that speaks TLS and asks for identities, with the files of a folder."""
    files = {name: str((folder / file).absolute()) for name, file in SETTINGS.items()}
    # Reflection tells what a service can do, which nobody has to hide on a machine for trying.
    auth = {"AUTH_MODE": "mtls,jwt", "AUTH_POLICY": str(policy.absolute()), "AUTH_AUDIENCE": AUDIENCE}
    return files | auth | {"REFLECTION": "true"}


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _builder(subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(days=DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _read_key(file: Path) -> ec.EllipticCurvePrivateKey:
    key = load_pem_private_key(file.read_bytes(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ValueError(f"{file.name} was not made by `parlor dev-certs`")
    return key


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _write(folder: Path, name: str, certificate: bytes, key: bytes) -> None:
    """Write the files whole, the key for its owner only; a server that looks at them meets no half of one."""
    for file, data, mode in ((folder / f"{name}.key", key, 0o600), (folder / f"{name}.pem", certificate, 0o644)):
        new = file.with_name(f"{file.name}.new")
        new.unlink(missing_ok=True)
        new.touch(mode)
        new.write_bytes(data)
        new.replace(file)
