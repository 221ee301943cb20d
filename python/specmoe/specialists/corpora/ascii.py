"""The ASCII specialist: HLXL to LC-T and back."""

from __future__ import annotations

from .specialists import EVERY_KIND, Specialist, both_ways

ASCII = Specialist("ascii", EVERY_KIND, both_ways("lc-t"), {"lc-t": 1.0})
