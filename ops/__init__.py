"""The `parlor` command: start, migrate, seed and verify the system."""
