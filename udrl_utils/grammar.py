"""The grammar teacher: an embedded, deterministic, rule-based stand-in for an LLM.

It looks for the topic of an intent, opens a prompt with it, and adds phrases until the prompt has the length
that it drew. Like an LLM it is uneven: some prompts drop part of the intent, stray to a neighbouring subject or
leave it altogether, some repeat each other, and lengths vary. Upside-down RL learns from that spread.
"""

from __future__ import annotations

import json
import random
import re
from dataclasses import dataclass
from functools import cache

from udrl_utils.tasks import Domain, Words, load_data, ontology, plural, subjects_of, words


@dataclass(frozen=True)
class Topic:
    """What the teacher understood of an intent: all of it, its gist, its noun, and its domain if that is known."""

    full: str
    gist: str
    noun: str
    domain: Domain | None


@cache
def known_subjects() -> dict[str, tuple[str, Domain]]:
    """Every subject of the ontology, and its plural, to (subject, domain)."""
    known = {}
    for domain in ontology():
        for subject in domain.subjects:
            known[subject] = (subject, domain)
            known.setdefault(plural(subject), (plural(subject), domain))
    return known


def understand(intent: str) -> Topic:
    """Find the gist and the noun of an intent, the way a reader would who knows only the ontology."""
    leads = "|".join(map(re.escape, sorted(load_data("grammar")["leads"], key=len, reverse=True)))
    full = re.sub(rf"^(?:(?:{leads})\s+)?(?:(?:an?|the)\s+)?", "", intent) or intent
    stops = "|".join(map(re.escape, load_data("grammar")["stops"]))
    gist = re.split(rf"\s(?:{stops})\s", full, maxsplit=1)[0].strip(" ,") or full
    tokens = full.split()
    for size in (4, 3, 2, 1):
        for start in range(len(tokens) - size + 1):
            found = known_subjects().get(" ".join(tokens[start : start + size]).strip(",").removesuffix("'s"))
            if found:
                return Topic(full, gist, *found)
    return Topic(full, gist, (words(gist) or [full])[-1], None)


class GrammarTeacher:
    """Writes prompts by the patterns of grammar.yaml; the same seed and request give the same reply.

    drift: share of prompts that stray from their intent, 0..1.
    repetition: share of prompts that nearly repeat an earlier one of the same reply, 0..1.
    """

    name = "grammar"

    def __init__(self, seed: int, drift: float, repetition: float):
        self.seed, self.drift, self.repetition = seed, drift, repetition

    def write(self, requests: list, journal: object = None) -> list[str]:
        """A JSON list of prompts per request; nothing is paid for, so no journal is kept."""
        return [json.dumps(self.prompts(r.task, r.intent, r.n)) for r in requests]

    def prompts(self, task: str, intent: str, n: int) -> list[str]:
        """n prompts for an intent."""
        rng = random.Random(f"{self.seed} {task} {intent}")
        topic, written = understand(intent), []
        for _ in range(n):
            if written and rng.random() < self.repetition:
                written.append(Draft(rng, task, topic, 0).vary(rng.choice(written)))
            else:
                written.append(Draft(rng, task, topic, self.drift).write())
        return written


class Draft:
    """One prompt in the making: what it keeps of the topic, how close its phrases stay, how long it gets."""

    def __init__(self, rng: random.Random, task: str, topic: Topic, drift: float):
        self.rng, self.task, self.grammar = rng, task, load_data("grammar")
        self.domain = topic.domain or rng.choice(ontology())
        self.knows = topic.domain is not None
        self.kept = self._keep(topic, drift)
        # From 0, phrases about anything, to 1, every phrase about the subject: the lever behind relevance.
        self.focus = rng.random()
        self.fill = Words(rng).fill

    def _keep(self, topic: Topic, drift: float) -> dict[str, str]:
        rng = self.rng
        sibling = rng.choice(self.domain.subjects) if self.knows else topic.noun
        if rng.random() < drift:
            stray = sibling if rng.random() < 0.5 else rng.choice(subjects_of("thing"))[0]
            return {"x": stray, "noun": stray, "sibling": sibling}
        x = rng.choices((topic.full, topic.gist, topic.noun), (6, 2, 1))[0]
        return {"x": x, "noun": topic.noun, "sibling": sibling}

    def _domain_words(self) -> dict[str, str]:
        """Phrases of the domain where it is known, else of the general vocabulary."""
        pick, general, domain = self.rng.choice, load_data("vocabulary"), self.domain
        if not self.knows:
            return {
                "detail": pick(general["adjective"]) + " " + self.kept["noun"],
                "template": pick(general["template_kind"]),
                "follow_up": pick(general["search_tail"]),
                "related": f"{pick(general['search_lead'])} {self.kept['noun']}",
            }
        scene = pick(domain.scenes) if self.rng.random() < 0.7 else pick(general["scene"])
        template = pick(domain.templates) if self.rng.random() < 0.5 else pick(general["template_kind"])
        drawn = {"detail": pick(domain.details), "follow_up": pick(domain.follow_ups), "related": pick(domain.related)}
        return {**drawn, "scene": scene, "template": template}

    def _phrase(self, pattern: str) -> str:
        return self.fill(pattern, **{**self._domain_words(), **self.kept})

    def write(self) -> str:
        """Open the prompt, then add phrases up to a length: 3 to 46 words, more often few than many, rarely 60."""
        target = round(self.rng.triangular(3, 46, 8)) if self.rng.random() < 0.97 else self.rng.randint(47, 60)
        openings = [self._phrase(self.rng.choice(self.grammar["openings"][self.task])) for _ in range(4)]
        parts = [min(openings, key=lambda text: max(0, len(text.split()) - target))]
        return self._extend(parts, target)

    def _extend(self, parts: list[str], target: int) -> str:
        for _ in range(60):
            room = target - sum(len(part.split()) for part in parts)
            if room <= 0:
                break
            kind = "near" if self.rng.random() < self.focus else "far"
            phrase = self._phrase(self.rng.choice(self.grammar[kind][self.task]))
            if len(phrase.split()) <= room and phrase not in parts:
                parts.append(phrase)
        return ", ".join(parts)

    def vary(self, prompt: str) -> str:
        """Nearly the same prompt again: one of its later phrases replaced, or one added."""
        parts = prompt.split(", ")
        dropped = parts.pop(self.rng.randrange(1, len(parts))) if len(parts) > 1 else ""
        return self._extend(parts, sum(len(part.split()) for part in parts) + max(2, len(dropped.split())))
