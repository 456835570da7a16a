"""Which intents are trained on, and which are held out to watch training and to test.

In go intents and fractions; out come a split for each intent, and nouns that no train text may name. The shipped base
uses the same functions, so that it never reads what a run may test with.
"""

from __future__ import annotations

import math
import unicodedata
from collections import Counter, defaultdict
from functools import lru_cache

from udrl_utils.ontology import noun_heads, plural
from udrl_utils.settings import DistillationSettings
from udrl_utils.text import lower_intent, share, stem, words

SPLIT_SEED = 1  # not the seed that chooses a teacher's examples: splits must not differ in them
HELD_OUT = 0.1  # share of intents that the shipped base never reads: the largest test_fraction of a run that uses it
ARTICLES = frozenset(("a", "an", "the"))
PRONOUNS = ("it", "me", "my", "our", "your")
LITTLE = frozenset((*PRONOUNS, "of", "for", "to", "in", "on", "at", "with", "and", "or", "by", "from", "as", "is"))
SIMILAR = 0.65  # share of the stems of two intents that both have, from which they are of one family


def normal_form(text: str) -> str:
    """The stems of a text's words in alphabetical order, each once, without articles; of a text without words, itself.

    "cat poster", "Cats' poster!" and "a poster of cats" differ for a reader, but the first two have the same form,
    and so has "poster, the cat".
    """
    plain = unicodedata.normalize("NFKC", text).replace("’", "'")
    found = {stem(part) for word in words(plain) for part in word.split("-")}
    return " ".join(sorted(found - ARTICLES)) or lower_intent(text)


def split_share(intent: str) -> float:
    """A number from 0 to 1 that decides the split of an intent; the same for intents of the same normal form."""
    return share(normal_form(intent), SPLIT_SEED)


def is_reserved(noun: str, test_fraction: float) -> bool:
    """Whether a noun may be held out of training; a larger test fraction keeps those of a smaller one."""
    return share(f"noun {stem(noun)}", SPLIT_SEED) < test_fraction / 2


def mentions(text: str, nouns: frozenset[str]) -> bool:
    """Whether a text contains one of the nouns in any form, in a compound too."""
    return not _stems(nouns).isdisjoint(normal_form(text).split())


@lru_cache(maxsize=16)
def _stems(nouns: frozenset[str]) -> frozenset[str]:
    return frozenset(map(stem, nouns))


def assign_splits(intents: list[str], settings: DistillationSettings) -> tuple[dict[str, str], frozenset[str]]:
    """Split of each intent, and the held-out nouns that no train or validation text may contain.

    The split depends on the intent's normal form and not on the seed: near-duplicates are never split between train
    and test, and a base that was trained earlier has read no test intent. Some rare nouns of the ontology are held out
    with every intent that mentions one, so that the analysis can ask for things the student has never seen.

    Intents that people bring are often typed in several wordings: a family of those shares the split of its first.
    Nothing that they bring is dropped for a probe: there are no held-out nouns among them.
    """
    own, test = brought(settings), settings.test_fraction
    held_out = frozenset() if own else held_out_nouns(intents, test)
    first = families(intents) if own else {intent: intent for intent in intents}
    named = {first[intent] for intent in intents if mentions(intent, held_out)}
    splits = {}
    for intent in intents:
        at = split_share(first[intent])
        if at < test or first[intent] in named:
            splits[intent] = "test"
        else:
            splits[intent] = "validation" if at < test + settings.validation_fraction else "train"
    return splits, held_out


def brought(settings: DistillationSettings) -> bool:
    """Whether people bring the intents, in pairs or in a list of their own."""
    return bool(settings.pairs) or (settings.intents != "ontology" and settings.teacher != "recorded")


def families(intents: list[str]) -> dict[str, str]:
    """The first intent of each one's family: an earlier one that is SIMILAR in its stems, without LITTLE words.

    Two similar sets share one of the rarest stems of each, so that few intents need to be compared.
    """
    forms = {intent: frozenset(normal_form(intent).split()) for intent in intents}
    forms = {intent: form - LITTLE or form for intent, form in forms.items()}
    counts = Counter(stem for form in forms.values() for stem in form)
    holders: dict[str, list[str]] = defaultdict(list)
    found = {}
    for intent, form in forms.items():
        rarest = sorted(form, key=lambda stem: (counts[stem], stem))[: len(form) - math.ceil(SIMILAR * len(form)) + 1]
        candidates = (other for stem in rarest for other in holders[stem])
        similar = (o for o in candidates if len(form & forms[o]) >= SIMILAR * len(form | forms[o]))
        found[intent] = next(similar, intent)
        if found[intent] == intent:
            for stem in rarest:
                holders[stem].append(intent)
    return found


def held_out_nouns(intents: list[str], test_fraction: float) -> frozenset[str]:
    """Nouns of the ontology that are reserved for the test split, with their plurals.

    Only nouns that are rare among the intents are taken, so that the train split keeps its size.
    """
    counts = Counter(form for intent in intents for form in normal_form(intent).split())
    rare = max(2, len(intents) // 200)
    known = (noun for noun in noun_heads() if len(noun) > 3 and noun.isalpha())
    chosen = {noun for noun in known if counts[stem(noun)] <= rare and is_reserved(noun, test_fraction)}
    plurals = {plural(noun) for noun in chosen if stem(noun) == noun or not noun.endswith("s")}
    return frozenset(chosen | {form for form in plurals if stem(form) not in map(stem, chosen)})  # leaves, not cats
