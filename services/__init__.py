"""The three services. None imports another: they talk by RPC."""
