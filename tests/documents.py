"""The documentation: README.md, and with docs/*.md as one text."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = "\n".join([README, *(path.read_text() for path in sorted(ROOT.glob("docs/*.md")))])
