"""A real server of the OpenAI protocol, `transformers serve`, on a small model that has learnt one reply by heart."""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from udrl_utils.ontology import ontology_intents
from udrl_utils.pairs import distil, read_pairs
from udrl_utils.runs import RunFolder
from udrl_utils.settings import DistillationSettings, resolve
from udrl_utils.tasks import words
from udrl_utils.teachers.replies import messages

PROMPTS = ["a koi pond at dawn, oil painting", "tea house in the rain, seen from above", "paper lanterns over a river"]
TEMPLATE = "{% for turn in messages %}<|{{ turn.role }}|>{{ turn.content }}{% endfor %}<|assistant|>"


@pytest.fixture(scope="module")
def parrot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny Llama that answers every chat with the same JSON list."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from udrl_utils.gpt2 import train_tokenizer

    folder, reply = tmp_path_factory.mktemp("parrot"), json.dumps({"prompts": PROMPTS})
    chats = [
        messages("text_to_image", [intent], 3) for intent in itertools.islice(ontology_intents(5, "text_to_image"), 80)
    ]
    texts = [turn["content"] for chat in chats for turn in chat]
    tokenizer = train_tokenizer([*texts, reply], 1200, ["<|system|>", "<|user|>", "<|assistant|>"])
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=2048, **shape))
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.eos_token_id
    answer = tokenizer(reply, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(240):
        asked = tokenizer.apply_chat_template(chats[step % len(chats)], tokenize=False)
        ids = tokenizer(asked, add_special_tokens=False)["input_ids"]
        loss = model(torch.tensor([ids + answer]), labels=torch.tensor([[-100] * len(ids) + answer])).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    assert loss < 0.1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def address(parrot: Path):
    """Address of `transformers serve` on that model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = Path(sys.executable).with_name("transformers")
    command = [script, "serve", str(parrot), "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as server:
        try:
            for _ in range(120):
                assert server.poll() is None, server.stdout.read().decode()[-2000:]
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                    break
                except OSError:
                    time.sleep(0.5)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()


@pytest.mark.slow
def test_a_run_is_distilled_from_a_served_model(smoke: dict, outputs: Path, parrot: Path, address: str) -> None:
    changes = {
        "teacher": "openai",
        "teacher_model": str(parrot),
        "teacher_base_urls": [address],
        "teacher_form": "list",
    }
    sizes = {"n_intents": 9, "prompts_per_intent": 3, "tasks": ["text_to_image"], "teacher_temperature": 0.0}
    settings = resolve(DistillationSettings, smoke | changes | sizes | {"teacher_concurrency": 2})
    counts, usage = distil(settings, RunFolder(settings.run).start("01_pairs", settings))
    assert counts["kept"] + counts.get("held_out_word", 0) >= 0.8 * counts["asked"]
    written = " ".join(read_pairs(RunFolder(settings.run)).prompt)
    assert set(words(written)) <= set(words(" ".join(PROMPTS)))
    assert usage["requests"] >= 9 and usage["tokens_in"] > usage["tokens_out"] > 0
