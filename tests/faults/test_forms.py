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
]


@pytest.mark.parametrize("reply", NOTHING)
def test_what_holds_no_prompt(reply: str) -> None:
    assert parse_reply(reply, 8) == [] and parse_single(reply) == []


def test_quotes_that_belong_to_a_prompt_stay() -> None:
    prompt = '"SALE" poster with a badge that says "50% off"'
    assert parse_single(prompt) == parse_single(f"Prompt: {prompt}") == [prompt]
    assert parse_reply(json.dumps([prompt, POND]), 2) == [prompt, POND]
