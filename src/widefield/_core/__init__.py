"""Leaves that every other part may import: errors, guards, optional imports."""
