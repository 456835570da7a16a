"""How an LLM is asked for prompts, how its replies are read, and the journal in which they are kept.

Requests become chat messages, and raw replies become prompts. In the form `list` a reply holds all prompts of an
intent, or of several intents at once, as JSON. In the form `single` it holds one prompt, which small models do better.
Nothing here knows who answers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import json_repair
from wordfreq import zipf_frequency

from udrl_utils.tasks import TASKS, share, words

# what a model thinks before it answers: a block, one that is cut off, or one that its chat template has opened
THOUGHTS = re.compile(r"<(think|thinking|thought|reasoning)>.*?(?:</\1>|\Z)|\A.*</think(?:ing)?>", re.S | re.I)
ITEM = re.compile(r"^\s*(?:[-*•]|\(?\d{1,3}[.):])\s+")
LIST = re.compile(r"""\[\s*["'{]""")  # where a list of prompts begins
CLOSED = re.compile(r"""["'}]\s*,?\s*\]|(?<!\\)"[\s,]*\Z""")  # a list that ends, or stops after a whole string
LONGEST_REPAIR = 20_000  # characters of a broken list that are read
NUMBERED = re.compile(r'"(\d{1,3})"\s*:\s*(?=\[)')
LABEL = re.compile(r"^(?:prompt|search|answer|output|assistant|rewrite|description)s?\s*\d*\s*:\s*", re.I)
EXAMPLE_SETS = ((0, 1, 2), (3, 4, 5), (4, 0, 3), (2, 5, 1))  # the examples shown when one prompt is asked for
RARE = 4.0  # Zipf frequency (wordfreq) from which a word is too common to tell where it comes from
NO_ANSWER = ("empty", "cut", "filtered")  # faults of a reply that arrived, and was paid for, but answers nothing


@dataclass(frozen=True)
class Request:
    """n prompts of a task for an intent."""

    task: str
    intent: str
    n: int


def single_messages(request: Request, number: int) -> list[dict[str, str]]:
    """Chat messages that ask for one prompt, the `number`-th of a request, with three examples as turns.

    Prompts of a request are short, middling and long in turn, and so are their examples: lengths vary because they are
    asked to. The intent decides which examples it is shown, so that no example colours all that a teacher writes.
    """
    task, size = TASKS[request.task], number % len(TASKS[request.task].lengths)
    chat = [{"role": "system", "content": f"{task.single} Write {task.lengths[size]} words and nothing else."}]
    for intent, prompts in shown_examples(request):
        chat += [{"role": "user", "content": intent}, {"role": "assistant", "content": prompts[size]}]
    return [*chat, {"role": "user", "content": request.intent}]


def shown_examples(request: Request) -> list[tuple[str, tuple[str, ...]]]:
    """Examples that a single prompt is asked for with: (intent, its short, middling and long prompt)."""
    chosen = EXAMPLE_SETS[int(share(request.intent, 0) * len(EXAMPLE_SETS))]
    examples = TASKS[request.task].examples
    return list(dict.fromkeys(examples[k % len(examples)] for k in chosen))


def borrows(request: Request, prompt: str) -> bool:
    """Whether a prompt copies the examples of its task rather than its intent: a rare word of their intents, or four
    words in a row of their prompts."""
    rare, shown = marks_of_examples(request.task)
    own, said = words(request.intent), words(prompt)
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


def without_system(chat: list[dict[str, str]]) -> list[dict[str, str]]:
    """A chat for models that know no system role: the system text opens the first turn of the user."""
    first, second, *rest = chat
    return [{"role": "user", "content": f"{first['content']}\n\n{second['content']}"}, *rest]


def without_thoughts(reply: str) -> str:
    """A reply without what the model wrote while it was thinking."""
    return THOUGHTS.sub("", reply).strip()


def parse_single(reply: str) -> list[str]:
    """The prompt of a reply that should hold one: its first line that is not empty, without label and quotes."""
    for line in without_thoughts(reply).splitlines():
        text = LABEL.sub("", ITEM.sub("", line.strip()))
        if len(text) > 1 and text[0] in "\"'“‘" and text[-1] in "\"'”’":
            text = text[1:-1].strip()
        if text:
            return [text]
    return []


def read_singles(replies: Sequence[str | None]) -> list[str]:
    """The prompts of replies that should hold one each."""
    return [prompt for reply in replies for prompt in parse_single(reply or "")]


def messages(task: str, intents: Sequence[str], n: int) -> list[dict[str, str]]:
    """Chat messages that ask for n prompts of each intent, few-shot examples included.

    One intent is answered by a JSON list; several are numbered, and answered by an object with a list for each number.
    """
    several = len(intents) > 1
    form = "a JSON object that has a list of strings for each number" if several else "a JSON list of strings"
    chat = [{"role": "system", "content": f"{TASKS[task].list} Answer with {form} and nothing else."}]
    examples = TASKS[task].examples[:2]
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
    _, *pieces = NUMBERED.split(without_thoughts(reply))  # what comes before, then each number and its list
    lists = dict(zip(map(int, pieces[::2]), pieces[1::2], strict=True))
    return [lists.get(k, "") for k in range(1, intents + 1)]


def parse_reply(reply: str, asked: int) -> list[str]:
    """Prompts of a raw reply: those of a JSON list, also within prose, broken or cut off; else of a numbered or
    bulleted list; else its lines, if there are at least half as many as were asked for.

    Never raises: a reply that cannot be read gives an empty list.
    """
    reply = without_thoughts(reply)
    for start in LIST.finditer(reply[:2000]):
        found = json_list(reply[start.start() :])
        if found:
            return found
    lines = [line.strip() for line in reply.splitlines() if line.strip() and not line.strip().startswith("```")]
    items = [line for line in lines if ITEM.match(line)]
    if not items and len(lines) < max(min(2, asked), asked / 2):
        return []
    return [ITEM.sub("", line).strip().strip("\"'“”").strip() for line in items or lines]


def json_list(text: str) -> list[str]:
    """Strings of the JSON list that a text begins with; the last one only if it is whole."""
    try:
        try:
            found, _ = json.JSONDecoder().raw_decode(text)
        except ValueError:
            text = text[:LONGEST_REPAIR]
            found: Any = json_repair.loads(text, skip_json_loads=True)
            found = found if CLOSED.search(text) else found[:-1]
    except (ValueError, TypeError, RecursionError):
        return []
    # some models wrap each prompt: [{"prompt": "..."}]
    found = [next(iter(item.values())) if isinstance(item, dict) and len(item) == 1 else item for item in found or []]
    whole = isinstance(found, list) and all(isinstance(item, str) for item in found)
    return [item.strip() for item in found] if whole else []


class Journal:
    """Lines of JSON, one per attempt, appended and flushed at once: a process that is killed loses none of them.

    An attempt has a key (a hash of all that was asked), and either a reply or an error; both with their tokens.
    `replies` holds the replies by key, `unanswered` how often a question got a reply that answers nothing, `usage`
    the number of requests, tokens, and failures by name. A last line that a kill cut in two is dropped.
    """

    def __init__(self, file: Path):
        self.file, self.replies, self.unanswered, self.usage = file, {}, Counter(), Counter()
        if file.exists():
            self._read()

    def _read(self) -> None:
        whole = 0
        with self.file.open("rb") as lines:
            for line in lines:
                try:
                    self._count(json.loads(line))
                except (ValueError, KeyError, TypeError):
                    if not line.endswith(b"\n"):
                        break
                    self.usage["unreadable"] += 1
                whole += len(line)
        if whole < self.file.stat().st_size:
            with self.file.open("r+b") as lines:
                lines.truncate(whole)

    def _count(self, entry: dict[str, Any]) -> None:
        key, error = entry["key"], entry.get("error")
        if error is None:
            self.replies[key] = entry["reply"]
        else:
            self.usage[f"failed_{error}"] += 1
            self.unanswered[key] += error in NO_ANSWER
        for name in ("tokens_in", "tokens_out"):
            self.usage[name] += entry.get(name, 0)
        self.usage["requests"] += 1

    def reply_to(self, key: str) -> str | None:
        """The reply to a question: '' for one that came and answers nothing, None where none has come."""
        return self.replies.get(key, "" if self.unanswered[key] else None)

    def add_reply(self, key: str, reply: str, tokens_in: int = 0, tokens_out: int = 0) -> None:
        """Keep a reply under the key of its question."""
        self._append({"key": key, "reply": reply, "tokens_in": tokens_in, "tokens_out": tokens_out})

    def add_failure(self, key: str, error: str, said: str = "", tokens_in: int = 0, tokens_out: int = 0) -> None:
        """Keep that an attempt failed: a word for its kind, such as 429 or timeout, and what the server said."""
        self._append({"key": key, "error": error, "said": said, "tokens_in": tokens_in, "tokens_out": tokens_out})

    def _append(self, entry: dict[str, Any]) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(entry, ensure_ascii=True) + "\n")
        self._count(entry)


def key_of(*parts: Any) -> str:
    """Key of a question: a hash of everything that shapes its answer."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=12).hexdigest()
