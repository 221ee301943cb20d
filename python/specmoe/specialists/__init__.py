"""Specialists for the HLX notations: a coordinator and small models beside it."""

from __future__ import annotations
