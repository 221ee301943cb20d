"""The runic specialist: HLXL to LC-R and back."""

from __future__ import annotations

from .specialists import EVERY_KIND, Specialist, both_ways

RUNIC = Specialist("runic", EVERY_KIND, both_ways("lc-r"), {"lc-r": 1.0})
