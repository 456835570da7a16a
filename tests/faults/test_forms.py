"""Forms of replies: how real models answer, and the prompts that are read. Sources are issues on github.com."""

from __future__ import annotations

import json

import pytest

from udrl_utils.teachers.replies import parse_reply, parse_single

POND, HOUSE = "a koi pond", "a tea house"
BOTH = json.dumps([POND, HOUSE])

# (name, public source or '', reply): all of them hold the prompts POND and HOUSE and nothing else
LISTS = [
    ("thoughts before", "vllm-project/vllm/issues/17357", f"<think>\n1. a draft\n2. another</think>\n{BOTH}"),
    (
        "thoughts that the template opened",
        "open-webui/open-webui/issues/9808",
        f'Maybe ["a draft"]?\n</think>\n\n{BOTH}',
    ),
    ("long thoughts", "", f"<think>{'First I should consider what the person wants. ' * 100}</think>{BOTH}"),
    ("thoughts in capitals", "mistralai/client-python/issues/252", f'[THINK]maybe ["a draft"][/THINK]{BOTH}'),
    (
        "channels",
        "vllm-project/vllm/issues/45736",
        f"<|channel|>analysis<|message|>1. a draft<|end|><|start|>assistant<|channel|>final<|message|>{BOTH}",
    ),
    ("a channel of thoughts", "", f'<|channel>thought\nmaybe ["a draft"]<channel|>{BOTH}'),
    ("thoughts of another name", "", f'<seed:think>["a draft"]</seed:think>{BOTH}'),
    ("cut in a string", "jundot/omlx/issues/2990", f'["{POND}", "{HOUSE}", "an ow'),
    ("cut in an object", "", f'{{"prompts": ["{POND}", "{HOUSE}", "an ow'),
    ("white space to the end", "vllm-project/vllm/issues/38696", f'{{"prompts": ["{POND}", "{HOUSE}"' + "\n" * 3000),
    ("one a line", "", f"{POND}\n{HOUSE}"),
    ("quoted lines", "", f'"{POND}",\n"{HOUSE}"'),
    ("lists in a list", "", f'[["{POND}"], ["{HOUSE}"]]'),
    ("a field of another name", "", f'{{"queries": {BOTH}}}'),
    ("the intent as a field", "", f'{{"koi pond": {BOTH}}}'),
    ("numbered fields", "", f'{{"1": "{POND}", "2": "{HOUSE}"}}'),
    ("named fields", "", f'{{"prompt_1": "{POND}", "prompt_2": "{HOUSE}"}}'),
    ("objects with a number", "", f'[{{"id": 1, "prompt": "{POND}"}}, {{"id": 2, "prompt": "{HOUSE}"}}]'),
    ("objects of one field", "", f'[{{"search": "{POND}"}}, {{"phrase": "{HOUSE}"}}]'),
    ("null and numbers between", "", f'["{POND}", null, 3, "{HOUSE}"]'),
    ("single quotes", "", f"['{POND}', '{HOUSE}']"),
    ("typographic quotes", "", f"[“{POND}”, “{HOUSE}”]"),
    ("a comma too many", "", f'["{POND}", "{HOUSE}",]'),
    ("a comma too few", "", f'["{POND}" "{HOUSE}"]'),
    ("a code fence", "lmstudio-ai/lmstudio-bug-tracker/issues/2403", f"```json\n{BOTH}\n```"),
    ("a marker at the end", "logancyang/obsidian-copilot/issues/2284", f"{BOTH}<|im_end|>"),
    ("bold numbers", "", f"**1.** {POND}\n**2.** {HOUSE}"),
    ("thoughts of Kimi", "", f'◁think▷maybe ["a draft"]◁/think▷{BOTH}'),
    ("thoughts of Command", "", f'<|START_THINKING|>["a draft"]<|END_THINKING|><|START_RESPONSE|>{BOTH}'),
    ("channels without their markers", "", f'analysisWe need ["a draft"] or so.assistantfinal{BOTH}'),
    ("a scratchpad", "", f"<scratchpad>\n1. a draft\n</scratchpad>\n{BOTH}"),
    ("an answer in tags", "", f"<answer>{BOTH}</answer>"),
    ("tags for a list", "", f"<prompts>\n<prompt>{POND}</prompt>\n<prompt>{HOUSE}</prompt>\n</prompts>"),
    ("HTML", "", f"<ol><li>{POND}</li><li>{HOUSE}</li></ol>"),
    ("a table", "", f"| # | Prompt |\n|---|---|\n| 1 | {POND} |\n| 2 | {HOUSE} |"),
    ("lines of JSON", "", f'{{"prompt": "{POND}"}}\n{{"prompt": "{HOUSE}"}}'),
    ("JSON in a string", "", json.dumps(BOTH)),
    ("escaped JSON", "", BOTH.replace('"', '\\"')),
    ("JSON in a field", "", json.dumps({"prompts": BOTH})),
    ("numbered lines in a field", "", json.dumps({"prompts": f"1. {POND}\n2. {HOUSE}"})),
    ("objects with tags", "", f'[{{"prompt": "{POND}", "tags": ["a"]}}, {{"prompt": "{HOUSE}", "tags": ["b", "c"]}}]'),
    (
        "objects with a title",
        "",
        json.dumps([{"title": "Koi", "prompt": POND}, {"query": "tea", "rewrite": HOUSE, "description": "a house"}]),
    ),
    ("fields by length", "", f'{{"short": "{POND}", "long": "{HOUSE}"}}'),
    ("the intent as a query", "", f'{{"query": "koi", "prompts": {BOTH}}}'),
    ("a comment in the JSON", "", f'[\n  // the first\n  "{POND}",\n  "{HOUSE}"\n]'),
    ("headings", "", f"### Prompt 1\n{POND}\n\n### Prompt 2\n{HOUSE}"),
    ("details below each", "", f"1. {POND}\n   - soft light\n2. {HOUSE}\n   - rain"),
    ("letters", "", f"a) {POND}\nb) {HOUSE}"),
    ("numbers in brackets", "", f"[1] {POND}\n[2] {HOUSE}"),
    ("numbers and dashes", "", f"1 - {POND}\n2 - {HOUSE}"),
    ("keycaps", "", f"1️⃣ {POND}\n2️⃣ {HOUSE}"),
    ("dashes and quotes", "", f"– «{POND}»\n– 「{HOUSE}」"),
    ("counts of words", "", f"1. {POND} (3 words)\n2. {HOUSE} [3 words]"),
    ("labels", "", f"Here they are:\n\n1. **Prompt:** {POND}\n2. **Prompt:** {HOUSE}"),
]


@pytest.mark.parametrize(("name", "source", "reply"), LISTS, ids=[name for name, *_ in LISTS])
def test_lists(name: str, source: str, reply: str) -> None:
    """Forms of lists; `source` is the report of a user on GitHub."""
    assert parse_reply(reply, 2) == [POND, HOUSE]


SINGLES = [
    ("plain", "", POND),
    ("empty thoughts", "vllm-project/vllm/issues/17609", f"<think>\n\n</think>\n\n{POND}"),
    ("a marker at the end", "pytorch/torchchat/issues/459", f"{POND}<|eot_id|>"),
    ("a turn that goes on", "deepseek-ai/DeepSeek-Coder/issues/136", f"{POND}\n<|EOT|>\n<|EOT|>\n"),
    ("another turn", "", f"{POND}<|im_end|>\n<|im_start|>user\na tea house"),
    ("the end of a sequence", "jundot/omlx/issues/1087", f"{POND}<eos>"),
    ("instruction markers", "", f"[INST] {POND} [/INST]"),
    ("a role before", "", f"<|im_start|>assistant\n{POND}<|im_end|>"),
    ("full-width markers", "", f"{POND}<｜end▁of▁sentence｜>"),
    ("an answer in tags", "", f"<think>koi?</think><answer>\n{POND}\n</answer>"),
    ("a role in words", "", f"assistant\n\n{POND}"),
    ("an object with a title", "", f'{{"title": "Koi", "prompt": "{POND}", "description": "a pond"}}'),
    ("a heading", "", f"### Prompt\n\n{POND}"),
    ("a rule", "", f"---\n{POND}\n---"),
    ("a quoted line", "", f"> *{POND}*"),
    ("a count of words", "", f"{POND} (3 words)"),
    ("a longer label", "", f"Text-to-image prompt: {POND}"),
    ("an introduction on its line", "", f"Here's a prompt: {POND}"),
    ("a field of another name", "", f'{{"negative_prompt": "rain", "image_prompt": "{POND}"}}'),
    ("a label", "", f"Prompt: {POND}"),
    ("a number and a label", "", f"1. Search: {POND}"),
    ("a bold label", "", f"**Prompt:** {POND}"),
    ("all bold", "", f"**{POND}**"),
    ("quoted", "", f'"{POND}"'),
    ("an introduction", "", f'Sure! Here is one prompt:\n\n"{POND}"\n\nIt keeps the koi.'),
    ("an object", "", f'{{"prompt": "{POND}"}}'),
    ("a list", "", BOTH),
    ("a fence", "", f"```\n{POND}\n```"),
]


@pytest.mark.parametrize(("name", "source", "reply"), SINGLES, ids=[name for name, *_ in SINGLES])
def test_single_prompts(name: str, source: str, reply: str) -> None:
    """Forms of a reply that should hold one prompt; `source` is the report of a user on GitHub."""
    assert parse_single(reply) == [POND]


NOTHING = [
    "<think>1. a koi\n2. an owl",
    '{"prompts": [\n' + " \n" * 3000,
    "[THINK]a koi",
    "",
    "```",
    "Prompts:",
    "<|im_end|>",
    "<answer></answer>",
    "---",
]


@pytest.mark.parametrize("reply", NOTHING)
def test_what_holds_no_prompt(reply: str) -> None:
    assert parse_reply(reply, 8) == [] and parse_single(reply) == []


KEPT = (
    '"SALE" poster with a badge that says "50% off"', "T. rex poster", "#1 dad mug", "movie night: popcorn and stars",
    "best job description", "how to write an answer", "3D print of a koi", "a photo (35 mm)", "7 wonders | poster",
    "✨ sparkling koi", "2024 - year planner", "3 - 6 months onesie",
    'newsletter title: "open late"', "<lora:koi:0.8> koi pond",
)  # fmt: skip


@pytest.mark.parametrize("prompt", KEPT)
def test_what_belongs_to_a_prompt_stays(prompt: str) -> None:
    assert parse_single(prompt) == parse_single(f"Prompt: {prompt}") == [prompt]
    assert parse_reply(json.dumps([prompt, POND]), 2) == parse_reply(f"1. {prompt}\n2. {POND}", 2) == [prompt, POND]
