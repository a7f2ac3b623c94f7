"""The paths of the checkout, and of the logs of everything that is started in it."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOGS = ROOT / ".engines"
"""Each of the scripts has a folder of its own in it."""
