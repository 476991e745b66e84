"""Errors that speak to the user: what was wrong, where, and what to do."""

import difflib
from collections.abc import Iterable


class PluralLLMError(Exception):
    """Base of every error that a user can mend; the CLI prints it without a traceback."""


class ConfigError(PluralLLMError):
    """A run-config key or value, or a combination of them, cannot work."""


class DatasetError(PluralLLMError):
    """A data file or row cannot be used; the message names file, line and reason."""


class EmbeddingError(PluralLLMError):
    """The frozen language model cannot be had or cannot embed; the message names remedies."""


class FederationError(PluralLLMError):
    """The federation cannot start or go on (nodes missing, too few good replies, …)."""


class ArtefactError(PluralLLMError):
    """A run directory, model or checkpoint is missing, damaged or cannot be written."""


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known word, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.7)
    return f" Did you mean '{close[0]}'?" if close else ""
