"""FailureLog of whole machines, on real servers."""
