"""Errors that every layer may raise, because the command line turns them into an exit code."""

from __future__ import annotations


class BadSettingError(Exception):
    """A setting has a value that cannot be used. The text is one line: option, value, expected value."""


class SecretValueError(ValueError):
    """A value that may hold a secret cannot be used. The text describes it, and has no part of it."""
