"""Record prompts with Qwen2.5 on a CPU in 8 bits: several times as fast as notebook 01, for the same requests.

    python benchmarks/record_in_8_bits.py RUN SEED N_INTENTS [SHARD]

In goes a seed; out come the replies of one of the run's two shards, in the journal that notebook 01 would read, so that
`udrl record RUN --add` packs them, at any time. Start it once per core and shard. It says how many replies a second it
writes. Weights have a scale per row, activations one per token; what chats begin with alike is attended to once, and a
row that has ended makes room for the next. The sampling is that of `LocalTeacher`.
"""

from __future__ import annotations

import math
import sys
import time
from itertools import groupby, takewhile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.functional import silu
from transformers import AutoConfig, AutoTokenizer

from udrl_utils.language_models import float_weights, located
from udrl_utils.pairs import journal_of, plan, shards, stamp_of
from udrl_utils.runs import RunFolder, keep
from udrl_utils.settings import DistillationSettings
from udrl_utils.teachers import make_teacher
from udrl_utils.teachers.local import LONGEST_PROMPT, MIN_P
from udrl_utils.teachers.replies import Chat, Journal

MODEL = "models/Qwen2.5-Coder-1.5B-Instruct.gguf"
ROWS = 200  # written at once
OWN = 60  # tokens of a chat that are its own, beside what all begin with; a longer one is left out


class Linear:
    """A linear layer whose weights, shape (out, in), and inputs are rounded to 8 bits."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None):
        weight = weight.float()
        self.scale, self.bias = weight.abs().amax(1) / 127, None if bias is None else bias.float()
        self.weight = (weight / self.scale[:, None]).round().to(torch.int8).t()

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        scale = x.abs().amax(1, keepdim=True).clamp(min=1e-8) / 127
        y = torch._int_mm((x / scale).round_().to(torch.int8), self.weight).float().mul_(scale).mul_(self.scale)
        return y if self.bias is None else y.add_(self.bias)


class Qwen:
    """Qwen2.5 with its own keys and values, [layer, row, head, place, size], beside those of a common beginning."""

    def __init__(self, folder: Path):
        config = AutoConfig.from_pretrained(folder)
        w = {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}
        self.heads, self.groups, self.eps = config.num_attention_heads, config.num_key_value_heads, config.rms_norm_eps
        self.size, self.embedding = config.hidden_size // self.heads, w["model.embed_tokens.weight"]
        self.layers = []
        for k in range(config.num_hidden_layers):
            prefix = f"model.layers.{k}."
            of = {name.removeprefix(prefix): w[name] for name in w if name.startswith(prefix)}
            qkv = [
                torch.cat([of.pop(f"self_attn.{name}_proj.{kind}") for name in "qkv"]) for kind in ("weight", "bias")
            ]
            up = torch.cat([of["mlp.gate_proj.weight"], of["mlp.up_proj.weight"]])
            before, after = of["input_layernorm.weight"].float(), of["post_attention_layernorm.weight"].float()
            out, down = Linear(of["self_attn.o_proj.weight"]), Linear(of["mlp.down_proj.weight"])
            self.layers.append((before, Linear(*qkv), out, after, Linear(up), down))
        self.norm, self.head = w["model.norm.weight"].float(), Linear(w.get("lm_head.weight", self.embedding))
        turns = torch.outer(torch.arange(4096.0), 1e6 ** -(torch.arange(0, self.size, 2) / self.size)).repeat(1, 2)
        self.cos, self.sin = turns.cos(), turns.sin()
        shape = (len(self.layers), ROWS, self.groups, OWN + LONGEST_PROMPT, self.size)
        self.keys, self.values = torch.zeros(shape), torch.zeros(shape)

    def normed(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * weight

    def turned(self, x: torch.Tensor, position: torch.Tensor) -> torch.Tensor:
        half = self.size // 2
        crossed = torch.cat([-x[..., half:], x[..., :half]], -1)
        return x * self.cos[position][:, None] + crossed * self.sin[position][:, None]

    def split(self, x: torch.Tensor, qkv: Linear, position: torch.Tensor) -> list[torch.Tensor]:
        """Queries [row, group, heads of a group, size], keys and values [row, group, size]."""
        n, sizes = len(x), [self.heads * self.size, self.groups * self.size, self.groups * self.size]
        q, k, v = (part.view(n, -1, self.size) for part in qkv(x).split(sizes, 1))
        q = self.turned(q, position).view(n, self.groups, -1, self.size) / math.sqrt(self.size)
        return [q, self.turned(k, position), v]

    def after_attention(self, x, attended, out, after, up, down) -> torch.Tensor:
        x = x + out(attended)
        gate, value = up(self.normed(x, after)).chunk(2, 1)
        return x + down(silu(gate) * value)

    def reads(self, ids: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Keys and values [group, place, size] of a common beginning, per layer."""
        position, x, read = torch.arange(len(ids)), self.embedding[torch.tensor(ids)].float(), []
        later = torch.full((len(ids), len(ids)), -math.inf).triu(1)
        for before, qkv, *rest in self.layers:
            q, k, v = self.split(self.normed(x, before), qkv, position)
            k, v = k.transpose(0, 1).contiguous(), v.transpose(0, 1).contiguous()
            read.append((k, v))
            weights = (q.permute(1, 2, 0, 3) @ k.transpose(1, 2)[:, None] + later).softmax(-1)
            x = self.after_attention(x, (weights @ v[:, None]).permute(2, 0, 1, 3).flatten(1), *rest)
        return read

    def next_logits(self, ids, place, beginning, length: int, wanted) -> torch.Tensor:
        """Each row reads one more token, at its own place after the beginning. Logits of the rows `wanted`."""
        n, most, rows = len(ids), int(place.max()) + 1, torch.arange(len(ids))
        x, unread = self.embedding[ids].float(), (torch.arange(most) > place[:, None])[:, None, None]
        for layer, ((before, qkv, *rest), (k0, v0)) in enumerate(zip(self.layers, beginning, strict=True)):
            q, self.keys[layer, rows, :, place], self.values[layer, rows, :, place] = self.split(
                self.normed(x, before), qkv, place + length
            )
            apart = q.transpose(0, 1).flatten(1, 2)  # all rows ask one beginning: one product per group
            common = (apart @ k0.transpose(1, 2)).view(self.groups, n, -1, length).transpose(0, 1)
            own = (q @ self.keys[layer, :n, :, :most].transpose(2, 3)).masked_fill_(unread, -math.inf)
            common, own = torch.cat([common, own], -1).softmax(-1).split([length, most], -1)
            attended = (common.transpose(0, 1).flatten(1, 2) @ v0).view(self.groups, n, -1, self.size).transpose(0, 1)
            x = self.after_attention(x, (attended + own @ self.values[layer, :n, :, :most]).flatten(1), *rest)
        return self.head(self.normed(x[wanted], self.norm))

    def moves(self, source: int, target: int, places: int) -> None:
        """A row takes another's place."""
        for kept in (self.keys, self.values):
            kept[:, target, :, :places] = kept[:, source, :, :places].clone()


def drawn(logits: torch.Tensor, temperature: float, generator: torch.Generator) -> list[int]:
    """A token per row, by min-p; the likeliest of those that have drawn a Gumbel number."""
    logits = logits / temperature
    rows, tokens = (logits >= logits.amax(1, keepdim=True) + math.log(MIN_P)).nonzero(as_tuple=True)
    score = logits[rows, tokens] - torch.empty(len(rows)).exponential_(generator=generator).log()
    best: dict[int, tuple[float, int]] = {}
    for row, pair in zip(rows.tolist(), zip(score.tolist(), tokens.tolist(), strict=True), strict=True):
        best[row] = max(best.get(row, pair), pair)
    return [token for _, (_, token) in sorted(best.items())]


def write(model: Qwen, chats: list[list[int]], temperature: float, ends: set[int], generator: torch.Generator):
    """(number of a chat, its reply as tokens) as soon as one has ended; the chats begin alike."""
    length = sum(1 for _ in takewhile(lambda c: len(set(c)) == 1, zip(*(ids[:-1] for ids in chats), strict=False)))
    beginning = model.reads(chats[0][:length])
    waiting = [k for k in sorted(range(len(chats)), key=lambda k: len(chats[k])) if len(chats[k]) - length < OWN]
    rows = [(waiting.pop(), 0, []) for _ in range(min(ROWS, len(waiting)))]  # chat, place, reply
    while rows:
        ids = [(chats[k][length:] + reply)[place] for k, place, reply in rows]
        place = torch.tensor([place for _, place, _ in rows])
        wanted = [j for j, (k, place, _) in enumerate(rows) if place + 1 >= len(chats[k]) - length]
        logits = model.next_logits(torch.tensor(ids), place, beginning, length, torch.tensor(wanted, dtype=torch.long))
        rows = [(k, place + 1, reply) for k, place, reply in rows]
        for j, token in reversed(list(zip(wanted, drawn(logits, temperature, generator), strict=True))):
            k, _, reply = rows[j]
            reply.append(token)
            if token not in ends and len(reply) < LONGEST_PROMPT:
                continue
            yield k, reply
            if waiting:
                rows[j] = (waiting.pop(), 0, [])
            else:
                last = rows.pop()
                if j < len(rows):
                    model.moves(len(rows), j, last[1])
                    rows[j] = last


def main(name: str, seed: str, n_intents: str, shard: str = "0") -> None:
    torch.set_num_threads(1)
    asked = {"teacher": "local", "teacher_model": MODEL, "teacher_form": "single", "prompts_per_intent": 4}
    settings = DistillationSettings(
        run=name, seed=int(seed), n_intents=int(n_intents), shard_size=-(-int(n_intents) // 2), **asked
    )
    run, requests = RunFolder(name), plan(settings)
    keep(run / "01_pairs", stamp_of(settings, requests, {}))
    file, part = shards(run / "01_pairs", requests, settings)[int(shard)]
    journal, teacher = Journal(journal_of(file)), make_teacher(settings)
    chats: dict[str, Chat] = {key: chat for request in part for key, chat in teacher.asked(request).items()}
    alike = sorted((str(chat[:-1]), key) for key, chat in chats.items() if key not in journal.replies)
    folder = float_weights(located(MODEL))
    tokenizer, model, generator = AutoTokenizer.from_pretrained(folder), Qwen(folder), torch.Generator()
    generator.manual_seed(2 * int(seed) + int(shard))
    ends, began, done = set(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])), time.monotonic(), 0
    for _, group in groupby(alike, key=lambda pair: pair[0]):
        keys = [key for _, key in group]
        texts = [tokenizer.apply_chat_template(chats[key], tokenize=False, add_generation_prompt=True) for key in keys]
        ids = tokenizer(texts, add_special_tokens=False)["input_ids"]
        for k, reply in write(model, ids, settings.teacher_temperature, ends, generator):
            text = tokenizer.decode(reply, skip_special_tokens=True) if reply[-1] in ends else ""
            journal.add(key=keys[k], reply=text, tokens_out=len(reply))
            done += 1
            if done % 200 == 0:
                rate = done / (time.monotonic() - began)
                print(f"{done} of {len(alike)} replies, {rate:.1f}/s: {text}", flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main(*sys.argv[1:])
