"""How an LLM teacher is asked for prompts, of one intent or of several at once, and how its replies are read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from udrl_utils.tasks import TASKS

ITEM = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.):])\s+")
WHOLE_STRING = re.compile(r'"(?:[^"\\]|\\.)*"(?=\s*[,\]])')
NUMBERED = re.compile(r'"(\d{1,3})"\s*:\s*(?=\[)')


@dataclass(frozen=True)
class Request:
    """n prompts of a task for an intent."""

    task: str
    intent: str
    n: int


def messages(task: str, intents: Sequence[str], n: int) -> list[dict[str, str]]:
    """Chat messages that ask for n prompts of each intent, few-shot examples included.

    One intent is answered by a JSON list; several are numbered, and answered by an object with a list for each number.
    """
    several = len(intents) > 1
    form = "a JSON object that has a list of strings for each number" if several else "a JSON list of strings"
    chat = [{"role": "system", "content": f"{TASKS[task].instruction} Answer with {form} and nothing else."}]
    examples = TASKS[task].examples
    for turn in [examples] if several else [[example] for example in examples]:
        shown, answers = zip(*turn, strict=True)
        answer = {str(k): list(prompts) for k, prompts in enumerate(answers, 1)} if several else answers[0]
        chat.append({"role": "user", "content": request_text(shown, len(answers[0]))})
        chat.append({"role": "assistant", "content": json.dumps(answer)})
    return [*chat, {"role": "user", "content": request_text(intents, n)}]


def request_text(intents: Sequence[str], n: int) -> str:
    """The user's turn of a request."""
    quoted = [json.dumps(intent, ensure_ascii=False) for intent in intents]
    if len(quoted) == 1:
        return f"Intent: {quoted[0]}\nWrite {n} of them."
    return "\n".join([*(f"Intent {k}: {text}" for k, text in enumerate(quoted, 1)), f"Write {n} of them for each."])


def reply_schema(intents: int, n: int) -> dict[str, Any]:
    """JSON schema of a reply with n prompts for each of some intents, for servers that can be told one."""
    prompts = {"type": "array", "items": {"type": "string"}, "minItems": n, "maxItems": n}
    names = ["prompts"] if intents == 1 else [str(k) for k in range(1, intents + 1)]
    return {
        "type": "object",
        "properties": dict.fromkeys(names, prompts),
        "required": names,
        "additionalProperties": False,
    }


def split_reply(reply: str, intents: int) -> list[str]:
    """A reply to several numbered intents as a reply to each, '' for those that it leaves out."""
    if intents == 1:
        return [reply]
    _, *pieces = NUMBERED.split(reply)  # what comes before, then each number and its list
    lists = dict(zip(map(int, pieces[::2]), pieces[1::2], strict=True))
    return [lists.get(k, "") for k in range(1, intents + 1)]


def parse_reply(reply: str, asked: int) -> list[str]:
    """Prompts of a raw reply: a JSON list, alone or within prose, or what is whole of a list that was cut off;
    else a numbered or bulleted list; else its lines, where there are at least half as many as were asked for.

    Never raises: what cannot be read gives an empty list.
    """
    for start in (match.start() for match in re.finditer(r"\[", reply[:2000])):
        found = json_list(reply[start:])
        if found:
            return found
    lines = [line.strip() for line in reply.splitlines() if line.strip() and not line.strip().startswith("```")]
    items = [line for line in lines if ITEM.match(line)]
    if not items and len(lines) < max(min(2, asked), asked / 2):
        return []
    return [ITEM.sub("", line).strip().strip("\"'“”").strip() for line in items or lines]


def json_list(text: str) -> list[str]:
    """Strings of the JSON list that a text begins with; of a list that is cut off, those that are whole."""
    try:
        found, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        if not re.match(r'\[\s*"', text):
            return []
        try:
            found = [json.loads(string) for string in WHOLE_STRING.findall(text)]
        except ValueError:
            return []
    # some models wrap each prompt: [{"prompt": "..."}]
    found = [next(iter(item.values())) if isinstance(item, dict) and len(item) == 1 else item for item in found]
    return [item.strip() for item in found] if all(isinstance(item, str) for item in found) else []
