"""Failures of whole machines, on real servers."""
