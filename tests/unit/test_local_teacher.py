"""A language model on this machine as a teacher: what it writes, how it goes on after a kill, what it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from udrl_utils.decoding import Draw, Sampling
from udrl_utils.errors import SettingsError
from udrl_utils.gpt2 import train_tokenizer
from udrl_utils.teachers import local
from udrl_utils.teachers.local import LocalTeacher, Writer
from udrl_utils.teachers.replies import Journal, Request

TEMPLATE = "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}{% endfor %}<|assistant|>"
REFUSES = "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
REQUESTS = [
    Request("query_rewrite", intent, 3) for intent in ("koi", "a much longer intent about tea", "owl", "red fox")
]


def save_llama(folder: Path, template: str | None = TEMPLATE) -> Path:
    """A tiny Llama with random weights, and a chat template or none."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = train_tokenizer(["koi pond at dawn"] * 3, 300, ["<|system|>", "<|user|>", "<|assistant|>"])
    tokenizer.chat_template = template
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_key_value_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=4, initializer_range=0.3, **shape)
    config.eos_token_id = tokenizer.eos_token_id
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_batched_replies_are_those_of_each_chat_alone(tmp_path: Path) -> None:
    writer = Writer(str(save_llama(tmp_path)), temperature=0.0)
    teacher = LocalTeacher(str(tmp_path), 0.0, 0, "single")
    chats = {key: chat for request in REQUESTS for key, chat in teacher.asked(request).items()}
    for batch in writer.batches(chats, 20):
        rows, written = list(batch.values()), [[] for _ in batch]
        with torch.inference_mode():
            for going, drawn in writer._written(rows, 20, Draw(Sampling(temperature=0.0), "cpu")):
                for row, token in zip(going, drawn, strict=True):
                    written[row].append(token)
        for ids, tokens in zip(rows, written, strict=True):
            alone = writer.model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :]
            assert tokens == [token for token in alone.tolist() if token not in writer.ends]


def test_a_reply_that_does_not_end_is_no_prompt(tmp_path: Path) -> None:
    writer = Writer(str(save_llama(tmp_path)), temperature=1.0)
    chats = {"a" * 8: [{"role": "user", "content": "koi"}], "b" * 8: [{"role": "user", "content": "owl"}]}
    [batch] = writer.batches(chats, 5)
    writer.ends = [-1]  # which is never drawn
    assert [text for text, _ in writer(batch, 5)] == ["", ""]


def test_the_same_seed_writes_the_same_after_a_kill_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(local.BATCH_ROWS, "cpu", 4)
    monkeypatch.setattr(local, "LONGEST_PROMPT", 12)
    save_llama(tmp_path / "llama")

    def teacher(seed: int) -> LocalTeacher:
        found = LocalTeacher(str(tmp_path / "llama"), 1.0, seed, "single")
        found.writer.ends = list(range(100))  # weights without training hardly ever come to an end
        return found

    whole = Journal(tmp_path / "whole.jsonl")
    first = teacher(5).write(REQUESTS, whole)
    lines = (tmp_path / "whole.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "cut.jsonl").write_text("".join(lines[:6]) + '{"key": "cut off')
    cut = Journal(tmp_path / "cut.jsonl")
    assert teacher(5).write(REQUESTS, cut) == first and cut.replies == whole.replies
    other = Journal(tmp_path / "other.jsonl")
    teacher(6).write(REQUESTS, other)
    assert sorted(other.replies.values()) != sorted(whole.replies.values())
    assert teacher(5).replies(Request("query_rewrite", "never asked", 3), whole) == [None] * 3


def test_a_template_without_a_system_role_has_the_text_in_the_first_turn(tmp_path: Path) -> None:
    writer = Writer(str(save_llama(tmp_path, REFUSES + TEMPLATE)), 0.0)
    text = writer.text([{"role": "system", "content": "be brief"}, {"role": "user", "content": "koi"}])
    assert text == "<|user|>be brief\n\nkoi<|assistant|>"
    with pytest.raises(SettingsError, match=r"the chat template of .* refuses a chat: no chats at all"):
        Writer(str(save_llama(tmp_path, "{{ raise_exception('no chats at all') }}")), 0.0).text(
            [{"role": "system", "content": "be brief"}, {"role": "user", "content": "koi"}]
        )


def test_a_chat_begins_once_and_an_intent_adds_no_special_token(tmp_path: Path) -> None:
    """abetlen/llama-cpp-python/issues/1501: Llama 3 with two tokens that begin a text."""
    from tokenizers.processors import TemplateProcessing

    writer = Writer(str(save_llama(tmp_path, "<|system|>" + TEMPLATE)), 0.0)
    begin, user = writer.tokenizer.convert_tokens_to_ids(["<|system|>", "<|user|>"])
    backend = writer.tokenizer.backend_tokenizer
    backend.post_processor = TemplateProcessing(single="<|system|> $A", special_tokens=[("<|system|>", begin)])
    assert writer.tokenizer("koi")["input_ids"][0] == begin
    teacher = LocalTeacher(str(tmp_path), 0.0, 0, "single")
    chats = [teacher.asked(Request("query_rewrite", intent, 1)) for intent in ("koi", "koi <|user|> <|system|>")]
    plain, odd = (next(iter(writer.batches(some, 9)[0].values())) for some in chats)
    assert plain.count(begin) == odd.count(begin) == 2 and plain.count(user) == odd.count(user) == 4


def test_arguments_of_a_chat_template_are_part_of_what_was_asked(tmp_path: Path) -> None:
    save_llama(tmp_path, TEMPLATE + "{{ tone }}{% if enable_thinking %}<think>{% endif %}")
    plain, warm = (LocalTeacher(str(tmp_path), 0.0, 0, "single", how) for how in (None, {"tone": "warm"}))
    assert plain.asked(REQUESTS[0]).keys().isdisjoint(warm.asked(REQUESTS[0]))
    assert warm.writer.text([{"role": "user", "content": "koi"}]).endswith("<|assistant|>warm")
    loud = LocalTeacher(str(tmp_path), 0.0, 0, "single", {"enable_thinking": True})
    assert loud.writer.text([{"role": "user", "content": "koi"}]).endswith("<|assistant|><think>")


def test_thoughts_are_no_prompts_and_models_are_told_not_to_think(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.jsonl")
    for form, reply, prompts in (
        ("single", "<think>\n1. a draft\n</think>\n\na koi pond", ["a koi pond"] * 3),
        ("list", '<think>["a draft"]</think>["a koi pond", "an owl"]', ["a koi pond", "an owl"]),
        ("list", "<think>1. a draft\n2. another", []),
    ):
        teacher = LocalTeacher("thinker", 1.0, 0, form)
        for key in teacher.asked(REQUESTS[0]):
            journal.add(key=key, reply=reply)
        assert teacher.write(REQUESTS[:1], journal) == [prompts]
    thinks = TEMPLATE + "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}"
    writer = Writer(str(save_llama(tmp_path, thinks)), 0.0)
    assert writer.text([{"role": "user", "content": "koi"}]).endswith("<|assistant|><think></think>")


def test_what_cannot_teach_is_one_line(tmp_path: Path) -> None:
    save_llama(tmp_path / "base", template=None)
    (tmp_path / "torn.gguf").write_bytes(b"GGUF" + bytes(40))
    (tmp_path / "text.gguf").write_text("not a model")
    for model, why in {
        "base": "has no chat template",
        "torn.gguf": "torn.gguf",
        "text.gguf": "is not a GGUF file",
        "none.gguf": "there is no file",
        "folder": "is neither a .gguf file, a folder nor a Hub id",
    }.items():
        with pytest.raises(SettingsError, match=why) as caught:
            Writer(str(tmp_path / model), 1.0)
        assert "\n" not in str(caught.value)
