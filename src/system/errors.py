"""The one base class of every error a person can mend."""

from __future__ import annotations


class ProjectError(Exception):
    """Bad input or a bad setting: one line that says what came, what is allowed, what to do.

    A command that meets one prints that line on stderr and exits with 1, without a traceback
    (``src.system.cli``). Anything else is a defect of ours and keeps its traceback.
    """


class VerificationError(ProjectError):
    """A model isn't, or doesn't answer as, the one that was registered."""
