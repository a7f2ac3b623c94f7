"""Where the checkout is, and where what is started in it writes its logs."""

import pathlib

ROOT = pathlib.Path(__file__).resolve().parents[2]
LOGS = ROOT / ".engines"
"""Each of the scripts has a folder of its own in it."""
