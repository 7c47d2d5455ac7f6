"""What a patch is: archives, TIFF decoding, checks, grouping and splitting, the packed store."""

from __future__ import annotations
