"""The rights that a process needs in Redis or Valkey, as rules of an ACL user."""

from libs.cache.keys import PREFIX

# `time` and `pexpire` are called by the scripts, `ping` by health checks, `cluster|slots` and `info` while connecting.
COMMANDS = (
    *("hello", "auth", "select", "ping", "info", "client|tracking"),
    *("mget", "get", "set", "pexpire", "unlink", "scan", "time", "eval", "evalsha", "cluster|slots"),
)


def acl_rules() -> list[str]:
    """Return the rules of a user who may do what the cache does, with its keys, and nothing else."""
    return ["resetchannels", f"~{PREFIX}*", "-@all", *(f"+{command}" for command in COMMANDS)]
