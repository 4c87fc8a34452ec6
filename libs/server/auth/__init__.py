"""Callers: identities, rights, quotas, the audit log. docs/callers.md describes how to set them up."""

from libs.server.auth.access import Access, Guard, Visit
from libs.server.auth.methods import Salons
from libs.server.auth.settings import AccessError, AuthSettings

__all__ = ["Access", "AccessError", "AuthSettings", "Guard", "Salons", "Visit"]
