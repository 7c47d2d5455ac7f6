"""What the data looks like: statistics and pictures, before anything is trained."""

from __future__ import annotations
