"""The secrets of docker-compose.yml: generated passwords, the URLs that contain them, and certificates."""

import secrets
from hashlib import sha256
from pathlib import Path
from urllib.parse import quote

from libs.cache import acl_rules
from ops.dev_certs import write_certificates

MOUNT = Path("/run/secrets")  # where Compose shows the files to a container
LOGINS = {"database_url": "postgres"} | {
    f"{name}_database_url": f"parlor_{name}" for name in ("booking", "messaging", "stats")
}
REDIS_USER = "parlor"


def write_secrets(
    folder: Path, mount: Path = MOUNT, postgres: str = "postgres:5432", valkey: str = "valkey:6379"
) -> list[Path]:
    """Write the files to a folder that only its owner can open; return them. Files that exist are kept.

    The servers find them in `mount`. The containers run as different users, so that the files themselves are readable.
    Raises: OSError, ValueError, FolderInUse.
    """
    if not (folder / "ca.pem").exists():
        write_certificates(folder)
    folder.chmod(0o700)
    ca = quote(str(mount / "ca.pem"))
    passwords = {name: _kept(folder / f"{name}.password") for name in (*LOGINS.values(), REDIS_USER)}
    for name, login in LOGINS.items():
        url = f"postgresql://{login}:{passwords[login]}@{postgres}/parlor?sslmode=verify-full&sslrootcert={ca}"
        (folder / name).write_text(url)
    (folder / "redis_url").write_text(f"rediss://{REDIS_USER}:{passwords[REDIS_USER]}@{valkey}/0?ssl_ca_certs={ca}")
    digest = sha256(passwords[REDIS_USER].encode()).hexdigest()
    user = " ".join(["user", REDIS_USER, "on", f"#{digest}", *acl_rules()])
    (folder / "valkey.acl").write_text(f"user default off\n{user}\n")
    for name in ("cache_key", "whatsapp_app_secret"):
        _kept(folder / name)
    files = sorted(file for file in folder.iterdir() if file.is_file())
    for file in files:
        file.chmod(0o600 if file.name == "ca.key" else 0o644)
    return files


def _kept(file: Path) -> str:
    """Return the secret in a file; write a new one if there is no file."""
    if not file.exists():
        file.write_text(secrets.token_urlsafe(24))
    return file.read_text().strip()
