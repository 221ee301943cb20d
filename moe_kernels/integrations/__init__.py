"""Hooks into other libraries. Nothing here imports one of them unless the program has already done so."""
