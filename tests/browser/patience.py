"""What the browser tests share."""

from pathlib import Path

PATIENCE = 300  # seconds, a ceiling for a slow machine
SHOTS = Path(__file__).parents[2] / "runs" / "browser"
