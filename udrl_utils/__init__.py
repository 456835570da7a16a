"""Distil a large language model into a small GPT-2 that writes prompts under reward commands.

Import modules by name, such as `from udrl_utils.student import Student`: importing the package costs nothing.
"""

import os

__version__ = "0.1.0"

# nothing asks a model hub unless the user names a hub id, and no library sends usage pings by default
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
