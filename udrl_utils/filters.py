"""The filters of notebook 01: which prompts are dropped, and why.

In go pairs of intent and prompt, out comes a reason for each, or none. Nothing here knows who wrote them.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from functools import cache

import pandas as pd
import regex
from wordfreq import zipf_frequency

from udrl_utils.settings import DistillationSettings
from udrl_utils.tasks import TASKS
from udrl_utils.text import count_words, lower_intent, pieces, scripts, words

REFUSAL = re.compile(  # what a model says, not a card that says "I can't believe it"
    r"^(?:(?:i(?:['’]?m| am) (?:very |so )?)?sorry[,.]? (?:but )?|unfortunately,? |i apologi[sz]e,? (?:but )?)?"
    r"(?:i (?:can ?not|can['’]t|won['’]t|will not|am (?:unable|not able) to)|i['’]m (?:unable|not able) to) "
    r"(?:be able to )?(?:assist|help (?:you|with)|provide|create|generate|write|fulfil\w*|comply|produce|answer|"
    r"engage|do th)"
    r"|^as an ai (?:language|assistant|model)\b|^as an ai,",
    re.I,
)
CHATTER = re.compile(  # what a model says around its prompts, not "okay hand gesture sticker"
    r"^(?:(?:sure|certainly|of course|okay|absolutely)(?:!|[,.] (?:here|i|let)\b)"
    r"|here(?:['’]s| is| are)\b.{0,60}\b(?:prompts?|search(?:es)?|queries|suggestions?|descriptions?|variations?)\b"
    r"(?! (?:for|of|about) (?:a|my|our) )|i hope (?:this|these|that) (?:help|work|meet|is what)"
    r"|let me know (?:if you(?:['’]d| would| need| want| have)|what you think|how))",
    re.I,
)
MARKUP = re.compile(  # Markdown, HTML and JSON, not quotes and braces that people type
    r"</?(?:p|br|b|i|u|em|strong|div|span|ul|ol|li|h[1-6]|a|img|html|body|table|t[rdh]|code|pre|script)\b[^<>]*>|```|<!--"
    r"|\]\(\w+:|^#{1,6} (?!\d)|\*\*\w|^\s*[\[{]\s*[\"']|\"(?:prompt|text|search|query|output)s?\"\s*:"
    r"|\"\s*[\]}]\s*[\]}]?$|^\"[^\"]*\"(?:,\s*\"[^\"]*\")*,\s*\"[^\"]*\"?$|\w://",
    re.I,
)
SPECIAL = re.compile(
    r"<\|[^<>|]{1,40}\|>|</?s>|<(?:pad|unk|bos|eos|mask|(?:start|end)_of_turn|endoftext)>|\[/?INST\]|<</?SYS>>", re.I
)
CONTROL = regex.compile(r"[\p{Cc}\p{Cs}\p{Co}\ufffd]")  # joiners, narrow spaces and emoji are text
LONGEST_WORD = 60  # characters
RARE = 4.0  # Zipf frequency (wordfreq) from which a word is too common to tell where it comes from


def reject_reasons(pairs: pd.DataFrame, settings: DistillationSettings) -> pd.Series:
    """Why each pair (columns intent, prompt) is rejected, by its index; "" for those that pass the filters.

    Only a teacher must answer in the script of the intent; in pairs that people bring, prompts may have another one.
    """
    intent, prompt, length = pairs.intent, pairs.prompt, pairs.prompt.map(count_words).astype(int)
    found = {
        "empty": length == 0,
        "control_characters": prompt.map(CONTROL.search).notna(),
        "refusal": prompt.map(REFUSAL.match).notna(),
        "chatter": prompt.map(CHATTER.match).notna() | prompt.str.endswith(":"),
        "markup": prompt.map(MARKUP.search).notna(),
        "long_word": prompt.map(lambda text: max(map(len, pieces(text)), default=0)) > LONGEST_WORD,
        "special_token": prompt.map(SPECIAL.search).notna(),  # what a model takes for a token of its own
        "same_as_intent": prompt.map(lower_intent) == intent.map(lower_intent),
        "too_short": length < settings.min_words,
        "too_long": length > settings.max_words,
        "other_script": [not settings.pairs and other_script(*pair) for pair in zip(intent, prompt, strict=True)],
    }
    reasons = pd.Series("", index=pairs.index, dtype=object)
    for reason, rejected in found.items():
        reasons = reasons.mask((reasons == "") & pd.Series(rejected, pairs.index, dtype=bool), reason)
    return reasons


def other_script(intent: str, prompt: str) -> bool:
    """Whether most letters of a prompt are in scripts that its intent does not have."""
    known, found = scripts(intent), scripts(prompt)
    return bool(known) and sum(found[script] for script in known) < 0.5 * found.total()


def drop_near_duplicates(prompts: list[str], threshold: float) -> list[int]:
    """Indices of prompts whose word 3-grams have a Jaccard similarity below the threshold to every earlier one kept."""
    kept: dict[int, int] = {}  # number of 3-grams by index
    holders: dict[str, list[int]] = defaultdict(list)  # indices of the kept prompts that contain a 3-gram
    for index, prompt in enumerate(prompts):
        tokens = words(prompt)
        grams = {" ".join(tokens[i : i + 3]) for i in range(max(1, len(tokens) - 2))}
        shared = Counter(other for gram in grams for other in holders[gram])
        if all(both / (len(grams) + kept[other] - both) < threshold for other, both in shared.items()):
            kept[index] = len(grams)
            for gram in grams:
                holders[gram].append(index)
    return list(kept)


def borrows(task: str, intent: str, prompt: str) -> bool:
    """Whether a prompt copies the examples of its task rather than its intent: a rare word of their intents, or four
    words in a row of their prompts."""
    rare, shown = marks_of_examples(task)
    own, said = words(intent), words(prompt)
    return not (rare - set(own)).isdisjoint(said) or not (shown - runs(own)).isdisjoint(runs(said))


@cache
def marks_of_examples(task: str) -> tuple[frozenset[str], frozenset[tuple[str, ...]]]:
    """What gives a task's examples away: rare words of their intents, and four words in a row of their prompts."""
    named = {word for intent, _ in TASKS[task].examples for word in words(intent)}
    texts = [text for _, prompts in TASKS[task].examples for text in prompts]
    rare = frozenset(word for word in named if zipf_frequency(word, "en") < RARE)
    return rare, frozenset().union(*(runs(words(text)) for text in texts))


def runs(tokens: list[str], size: int = 4) -> set[tuple[str, ...]]:
    """All sequences of `size` words in a row."""
    return {tuple(tokens[k : k + size]) for k in range(len(tokens) - size + 1)}
