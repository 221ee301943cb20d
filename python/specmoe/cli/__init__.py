"""The `specmoe` command."""

from __future__ import annotations
