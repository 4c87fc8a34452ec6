"""`parlor doctor`: what is wrong with a running Parlor, and what mends it."""

from ops.doctor.examine import examine
from ops.doctor.findings import Diagnosis, Finding, Limits

__all__ = ["Diagnosis", "Finding", "Limits", "examine"]
