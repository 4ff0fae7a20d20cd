"""Traces: each run as a tree of spans, stored, read, compared and shown. Not imported while recording is off."""

STORE_SUFFIXES = (".sqlite", ".sqlite3", ".db")
"""Endings of the names of files that are stores of traces."""
