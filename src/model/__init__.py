"""The classifier: ResNet50 with preprocessing inside, freezing, the training loop, schedules."""

from __future__ import annotations
