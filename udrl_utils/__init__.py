"""Distil a large language model into a small GPT-2 that writes prompts under reward commands.

Import modules by name, such as `from udrl_utils.student import Student`: importing the package costs nothing.
"""

__version__ = "0.1.0"
