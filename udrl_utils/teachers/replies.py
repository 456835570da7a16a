"""How an LLM is asked for prompts, how its replies are read, and the journal in which they are kept.

Requests become chat messages, and raw replies become prompts. In the form `list` a reply holds all prompts of an
intent, or of several intents at once, as JSON. In the form `single` it holds one prompt, which small models do better.
Nothing here knows who answers.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import json_repair

from udrl_utils.tasks import TASKS
from udrl_utils.text import harmless, scripts, share

# what a model thinks before it answers: a block, one that is cut off, or one that its chat template has opened
THOUGHTS = re.compile(
    r"<((?:seed:)?think|thinking|thoughts?|reasoning|reflection|scratchpad)>.*?(?:</\1>|\Z)"
    r"|\[THINK\].*?(?:\[/THINK\]|\Z)|◁think▷.*?(?:◁/think▷|\Z)"
    r"|<\|(?:begin_of_thought|start_thinking)\|>.*?(?:<\|end_(?:of_thought|thinking)\|>|\Z)"
    r"|<\|channel\|?>\s*(?:analysis|commentary|thought)\b.*?(?:<\|channel\|>final<\|message\|>|<channel\|>|\Z)"
    r"|\Aanalysis.*?assistantfinal|\A.*</(?:seed:)?think(?:ing)?>",
    re.S | re.I,
)
MARKER = re.compile(
    r"(?:<[|｜][^<>|｜\n]{1,40}[|｜]>|</?s>|<[be]os>|\[/?INST\]|<(?:start|end)_of_turn>)(?:assistant|final)?"
    r"|\Aassistant\s*\n"
)
NUMBER = re.compile(r"^\s*[*_]*(?:[(\[]?\d{1,3}[.):\]]|\d{1,3} -(?! ?\d)|\d\ufe0f?\u20e3)[*_]*\s+")
BULLET = re.compile(r"^\s*[*_]*(?:[-*•–●▪→>]|#{1,6}|[a-z]\))[*_]*\s+", re.I)
START = re.compile(r"""[\[{]\s*(?://[^\n]*\s*)?\\?["'“\[{]""")  # where the JSON of a reply begins
CLOSED = re.compile(r"""["'”}]\s*,?\s*\]|(?<!\\)["”][\s,]*\Z""")  # a list that ends, or stops after a whole string
LONGEST_REPAIR = 20_000  # characters of a broken list that are read
NUMBERED = re.compile(r'"(\d{1,3})"\s*:\s*(?=\[)')
NAMES = "(?:prompt|search|answer|output|assistant|rewrite|description|query|queries|title)s?"
TAG = re.compile(rf"</?(?:{NAMES}|response|result|item|[ou]l|li|p|br)\s*/?>", re.I)
LABEL = re.compile(  # Prompt: or Prompt 1; and Here's a prompt:
    rf"^[*_]*(?:{NAMES}(?:\s*\d+)?[*_]*(?:\s*:\s*[*_]*\s*|$)"
    r"|(?:[\w'’-]+ ){1,3}(?:prompt|search|query|answer|rewrite)\s*[*_]*:\s*[*_]*\s*)",
    re.I,
)
FIELD = re.compile(  # of an object: it holds a prompt
    rf"(?!negative)(?:\w+[_ ])?(?:{NAMES}|(?:text|result|item)s?)|short|medium|long|\D*\d+", re.I
)
MAIN = ("prompt", "rewrite", "search", "answer", "output", "result", "query", "text", "description")
SIZE = re.compile(r"\s*[(\[]\d+ words?[)\]]\.?$", re.I)  # "a koi pond (3 words)"
QUOTES = ('""', "“”", "''", "‘’", "``", "«»", "「」", ("**", "**"), "**", "__")
EXAMPLE_SETS = ((0, 1, 2), (3, 4, 5), (4, 0, 3), (2, 5, 1))  # the examples shown when one prompt is asked for
Chat = list[dict[str, str]]  # turns, each with its role and content
NO_ANSWER = ("empty", "cut", "filtered")  # faults of a reply that arrived, and was paid for, but answers nothing


@dataclass(frozen=True)
class Request:
    """n prompts of a task for an intent."""

    task: str
    intent: str
    n: int


def single_messages(request: Request, number: int) -> Chat:
    """Chat messages that ask for one prompt, the `number`-th of a request, with three examples as turns.

    Prompts of a request are short, middling and long in turn, and so are their examples: lengths vary because they are
    asked to. The intent decides which examples it is shown, so that no example colours all that a teacher writes.
    """
    task, size = TASKS[request.task], number % len(TASKS[request.task].lengths)
    chat = [
        {
            "role": "system",
            "content": f"{task.single}{language([request.intent])} Write {task.lengths[size]} words and nothing else.",
        }
    ]
    for intent, prompts in shown_examples(request):
        chat += [{"role": "user", "content": intent}, {"role": "assistant", "content": prompts[size]}]
    return [*chat, {"role": "user", "content": harmless(request.intent)}]


def language(intents: Sequence[str]) -> str:
    """What a teacher is told besides where the examples, which are English, are in another script than an intent."""
    other = scripts(" ".join(intents)).keys() - {"LATIN"}
    return " Write in the language of the intent, not of the examples." if other else ""


def shown_examples(request: Request) -> list[tuple[str, tuple[str, ...]]]:
    """Examples that a single prompt is asked for with: (intent, its short, middling and long prompt)."""
    chosen = EXAMPLE_SETS[int(share(request.intent, 0) * len(EXAMPLE_SETS))]
    examples = TASKS[request.task].examples
    return list(dict.fromkeys(examples[k % len(examples)] for k in chosen))


def without_system(chat: Chat) -> Chat:
    """A chat for models that know no system role: the system text opens the first turn of the user."""
    first, second, *rest = chat
    return [{"role": "user", "content": f"{first['content']}\n\n{second['content']}"}, *rest]


def without_thoughts(reply: str) -> str:
    """A reply without what the model wrote while it was thinking."""
    return THOUGHTS.sub("", reply).strip()


def first_turn(reply: str) -> str:
    """The answer of a reply as text: what follows a marker of the model's chat template, such as <|im_end|> or [INST],
    belongs to another turn, and tags such as <answer> end lines."""
    turns = (TAG.sub("\n", turn).strip() for turn in MARKER.split(without_thoughts(reply)))
    return next(filter(None, turns), "")


def plain(line: str) -> str:
    """A line without bullet or number, label such as "Prompt:", emphasis, quotes and a count of its words; '' for what
    is no prompt: an introduction, which ends with a colon, a code fence, a rule."""
    if line.startswith("|") and line.endswith("|"):  # of a table: its longest cell
        line = max(line.split("|"), key=len)
    text = SIZE.sub("", BULLET.sub("", NUMBER.sub("", line.strip())))
    for opening, closing in QUOTES * 2:
        text = LABEL.sub("", text)
        inner = text.rstrip(",")[len(opening) : -len(closing)]
        if text.startswith(opening) and text.rstrip(",").endswith(closing) and (opening == "'" or opening not in inner):
            text = inner.strip()
    return "" if text.endswith(":") or text.startswith("```") or not re.search(r"\w", text) else text


def parse_single(reply: str) -> list[str]:
    """The prompt of a reply that should hold one: its first string of JSON, or its first line that is a prompt."""
    text = first_turn(reply)
    if START.match(text):
        return json_strings(text)[:1]
    return [prompt for prompt in map(plain, text.splitlines()) if prompt][:1]


def read_singles(replies: Sequence[str | None]) -> list[str]:
    """The prompts of replies that should hold one each."""
    return [prompt for reply in replies for prompt in parse_single(reply or "")]


def messages(task: str, intents: Sequence[str], n: int) -> Chat:
    """Chat messages that ask for n prompts of each intent, few-shot examples included.

    One intent is answered by a JSON list; several are numbered, and answered by an object with a list for each number.
    """
    several = len(intents) > 1
    form = "a JSON object that has a list of strings for each number" if several else "a JSON list of strings"
    chat = [
        {"role": "system", "content": f"{TASKS[task].list}{language(intents)} Answer with {form} and nothing else."}
    ]
    examples = TASKS[task].examples[:2]
    for turn in [examples] if several else [[example] for example in examples]:
        shown, answers = zip(*turn, strict=True)
        answer = {str(k): list(prompts) for k, prompts in enumerate(answers, 1)} if several else answers[0]
        chat.append({"role": "user", "content": request_text(shown, len(answers[0]))})
        chat.append({"role": "assistant", "content": json.dumps(answer)})
    return [*chat, {"role": "user", "content": request_text(intents, n)}]


def request_text(intents: Sequence[str], n: int) -> str:
    """The user's turn of a request."""
    quoted = [json.dumps(harmless(intent), ensure_ascii=False) for intent in intents]
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
    """Prompts of a raw reply: the strings of its JSON, also within prose, broken or cut off; else the items of a
    numbered or bulleted list; else its lines, if there are at least half as many as were asked for.

    Never raises: a reply that cannot be read gives an empty list.
    """
    text = without_thoughts(reply)
    for start in START.finditer(text[:2000]):
        found = json_strings(text[start.start() :])
        if found:
            return found
    lines = [line.rstrip() for line in first_turn(reply).splitlines() if plain(line.rstrip())]
    items = next(filter(None, ([line for line in lines if mark.match(line)] for mark in (NUMBER, BULLET))), [])
    if not items and len(lines) < max(min(2, asked), asked / 2):
        return []
    return [plain(line) for line in items or lines]


def json_strings(text: str) -> list[str]:
    """Prompts of the JSON that a text begins with, or of its lines of JSON; the last one only if it is whole."""
    try:
        with suppress(ValueError):
            return list(_decoded(text))
        with suppress(ValueError):  # a string that holds JSON
            return list(_decoded(text.replace('\\"', '"')))
        text = text[:LONGEST_REPAIR]
        found = list(prompts_in(json_repair.loads(text, skip_json_loads=True)))
        return found if CLOSED.search(text) else found[:-1]
    except (ValueError, TypeError, RecursionError):
        return []


def _decoded(text: str) -> Iterator[str]:
    """Prompts of the JSON that a text begins with, and of objects that follow it. Raises: ValueError."""
    while True:
        value, end = json.JSONDecoder().raw_decode(text)
        yield from prompts_in(value)
        text = text[end:].lstrip(" \n,")
        if not text.startswith("{"):
            return


def prompts_in(value: Any, listed: bool = False) -> Iterator[str]:
    """The strings of lists, of lists in lists, and of objects: of fields that hold prompts, or else of their lists."""
    if isinstance(value, str) and listed:
        if START.match(value):
            yield from json_strings(value)
        else:
            yield from map(plain, value.splitlines()) if NUMBER.match(value) and "\n" in value else [value.strip()]
    elif isinstance(value, list):
        for item in value:
            yield from prompts_in(item, True)
    elif isinstance(value, dict):
        named = [part for name, part in value.items() if FIELD.fullmatch(name)]
        lists = [part for part in named if isinstance(part, list)]
        main = [value[name] for name in MAIN if isinstance(value.get(name), str)][:1]  # beside a title, or the intent
        others = [part for part in value.values() if isinstance(part, list)]
        for part in lists or main or named or others or (value.values() if listed and len(value) == 1 else ()):
            yield from prompts_in(part, True)


class Journal:
    """Lines of JSON, one per attempt, appended and flushed at once: a process that is killed loses none of them.

    An attempt has a key (a hash of all that was asked), and either a reply or an error; both with their tokens.
    `replies` holds the replies by key, `faults` the last fault of other questions, `unanswered` how often a question
    got a reply that answers nothing, `usage` the number of requests, tokens, and failures by name, `batches` the
    questions of each batch file that is under way, by its id. A last line that a kill cut in two is dropped.
    """

    def __init__(self, file: Path):
        self.file, self.replies, self.unanswered, self.usage = file, {}, Counter(), Counter()
        self.faults: dict[str, str] = {}
        self.batches: dict[str, int] = {}
        self.left_out: Counter[str] = Counter()  # questions that were last asked for and have no reply, by fault
        self.said = ""  # the last fault, and what was said of it
        if not file.exists():
            return
        content = file.read_bytes()
        whole = content.rfind(b"\n") + 1
        for line in content[:whole].splitlines():
            with suppress(ValueError, KeyError, TypeError):
                self._count(json.loads(line))
        if whole < len(content):
            os.truncate(file, whole)

    def _count(self, entry: dict[str, Any]) -> None:
        if "batch" in entry:
            self.batches[entry["batch"]] = entry["questions"]
            if not entry["questions"]:
                del self.batches[entry["batch"]]
            return
        key, error = entry["key"], entry.get("error")
        if error is None:
            self.replies[key] = entry["reply"]
        else:
            self.faults[key], self.said = error, f"{error} {entry.get('said', '')}"
            self.usage[f"failed_{error}"] += 1
            self.unanswered[key] += error in NO_ANSWER
        for name in ("tokens_in", "tokens_out"):
            self.usage[name] += entry.get(name, 0)
        self.usage["requests"] += 1

    def reply_to(self, key: str) -> str | None:
        """The reply to a question: '' for one that came and answers nothing, None where none has come."""
        return self.replies.get(key, "" if self.unanswered[key] else None)

    def add(self, **entry: Any) -> None:
        """Keep an attempt: `key`, `reply` or `error` and what was `said`, `tokens_in`, `tokens_out`; or that a `batch`
        file with so many `questions` is under way, where 0 means that its answers are kept."""
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(json.dumps(entry) + "\n")
        self._count(entry)


def key_of(*parts: Any) -> str:
    """Key of a question: a hash of everything that shapes its answer."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=12).hexdigest()
