"""What the services share: the cache, the database access, the RPC server. No lib knows a service."""
