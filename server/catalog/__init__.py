"""The model store: which GGUF files are served, under which names, and what they are."""

from __future__ import annotations

from server.catalog.facts import Facts, clean_text, human_count
from server.catalog.scan import Catalog, Entry

__all__ = ["Catalog", "Entry", "Facts", "clean_text", "human_count"]
