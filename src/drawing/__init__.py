"""The generated archive: H&E-like patches whose colours say nothing about the label."""

from __future__ import annotations
