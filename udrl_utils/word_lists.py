"""Words that no prompt may hold, and words that each must hold.

Lists and prompts go in; out come judgements and mended prompts. Who writes the prompts is not known here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from udrl_utils.commands import CommandError


class WordLists:
    """Words or phrases that no prompt may hold, and others that each must hold; upper and lower case count the same."""

    def __init__(self, banned: Sequence[str], keep: Sequence[str]):
        """Raises: CommandError when one is in both lists, or a list is a single text."""
        for name, given in (("banned", banned), ("keep", keep)):
            if isinstance(given, str) or not all(isinstance(word, str) and word.strip() for word in given):
                raise CommandError(f"{name}={given!r} should be a list of words, such as ['blue']")
        banned, keep = ([" ".join(word.split()) for word in given] for given in (banned, keep))
        pattern = r"(?<!\w){}(?:e?s)?(?!\w)"  # a word or its plural
        self._banned = [re.compile(pattern.format(re.escape(word)), re.I) for word in banned]
        self._keep = {word: re.compile(pattern.format(re.escape(word)), re.I) for word in keep}
        for word in keep:
            if self._has_banned(word):
                raise CommandError(f"keep={word!r} is banned, too")

    def _has_banned(self, text: str) -> bool:
        return any(word.search(text) for word in self._banned)

    def _missing(self, text: str) -> list[str]:
        return [word for word, pattern in self._keep.items() if not pattern.search(text)]

    def added_to(self, intent: str) -> str:
        """An intent with the words to keep that it lacks."""
        return ", ".join([intent, *self._missing(intent)])

    def met_by(self, prompt: str) -> bool:
        """Whether a prompt holds all words to keep and none that is banned."""
        return not self._has_banned(prompt) and not self._missing(prompt)

    def mended(self, prompt: str) -> str:
        """The prompt without banned words, and with those to keep at its end where it lacks them."""
        if self.met_by(prompt):
            return prompt
        for word in self._banned:
            prompt = word.sub("", prompt)
        prompt = re.sub(r"\s+(?=[,.;:!?])", "", " ".join(prompt.split())).strip(" ,")
        return ", ".join(filter(None, [prompt, *self._missing(prompt)]))
