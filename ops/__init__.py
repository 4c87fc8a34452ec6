"""The `parlor` command: start, migrate, fill and verify the system."""
