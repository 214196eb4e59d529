"""Fixtures of several modules."""

from .encoded_cases import cache

__all__ = ["cache"]
