"""Versions of the formats that this package writes. A file of another version is refused with the command that helps.

Knows nothing about the formats themselves.
"""

from __future__ import annotations

BUNDLE_VERSION = 8
"""Of policy bundles (`bundle`), as `format_version` in `card.json`."""
OUTCOMES_VERSION = 2
"""Of stored outcomes (`outcomes`): in the metadata of each Parquet file and in each line of a journal."""
LOG_VERSION = 2
"""Of serving logs (`serving_logs`), as `log_version` in each line."""
