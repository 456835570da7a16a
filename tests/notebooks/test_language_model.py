"""A real language model, SmolLM2 of 135M parameters, teaches: in this process, and behind two real servers."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest

from udrl_utils.errors import RunError
from udrl_utils.language_models import fetch, float_weights
from udrl_utils.pairs import distil, read_pairs
from udrl_utils.runs import RunFolder
from udrl_utils.settings import ROOT, DistillationSettings, resolve
from udrl_utils.vocabulary import Vocabulary
from udrl_utils.wording import english

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gguf() -> Path:
    """The model's file in models/, fetched if need be."""
    try:
        return fetch("smollm2", ROOT / "models")
    except RunError as error:
        pytest.skip(f"no language model could be fetched: {error}")


def made_up(pairs: pd.DataFrame) -> float:
    """Share of words that do not exist, over all prompts."""
    words = Vocabulary(pairs.intent, english())
    return sum(map(words.share, pairs.intent, pairs.prompt)) / len(pairs)


def test_a_language_model_teaches_in_the_notebook(gguf: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "UDRL_OUTPUTS": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    changes = {"teacher": "local", "teacher_model": str(gguf), "tasks": "[query_rewrite]", "n_intents": 20}
    sets = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
    command = [
        sys.executable,
        "-m",
        "udrl_utils.cli",
        "run",
        "--preset",
        "smoke",
        "--run",
        "taught",
        "--to",
        "1",
        *sets,
    ]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "replies, " in done.stdout and "min left in this shard" in done.stdout
    record = json.loads((tmp_path / "taught" / "run.json").read_text())["stages"]["01_pairs"]
    pairs = pd.read_parquet(tmp_path / "taught" / "01_pairs")
    assert record["counts"]["asked"] == 80 and len(pairs) > 20 and set(pairs.teacher) == {gguf.name}
    assert made_up(pairs) < 0.05, "a language model writes words that exist"


@contextmanager
def serving(*command: str | Path) -> Iterator[str]:
    """Address of a server that a command starts; `{port}` in it becomes a free port."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": {**os.environ, "HF_HUB_OFFLINE": "1"}}
    with subprocess.Popen([str(part).replace("{port}", str(port)) for part in command], **quiet) as server:
        try:
            for _ in range(600):
                assert server.poll() is None, "the server has ended"
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                    break
                except OSError:
                    time.sleep(0.5)
            else:
                pytest.fail("the server does not answer within five minutes")
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.kill()


@contextmanager
def transformers_serve(gguf: Path) -> Iterator[tuple[str, str]]:
    """Address of `transformers serve` and the name of its model."""
    folder, script = float_weights(gguf), Path(sys.executable).with_name("transformers")
    with serving(script, "serve", folder, "--host", "127.0.0.1", "--port", "{port}", "--device", "cpu") as address:
        yield address, str(folder)


LLAMA_CPP = """
import sys, time, xllamacpp
parameters = xllamacpp.CommonParams()
parameters.model.path, parameters.port = sys.argv[1], int(sys.argv[2])
parameters.n_ctx, parameters.n_parallel = 4096, 2
parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = 1  # threads that wait for each other spin
server = xllamacpp.Server(parameters)
time.sleep(3600)
"""


@contextmanager
def llama_cpp(gguf: Path) -> Iterator[tuple[str, str]]:
    """Address of llama.cpp's server and the name of its model."""
    pytest.importorskip("xllamacpp")
    with serving(sys.executable, "-c", LLAMA_CPP, gguf, "{port}") as address:
        yield address, gguf.name


@pytest.mark.parametrize(  # transformers serve takes no schema, without which this model writes no list
    ("serve", "form"), [(llama_cpp, "single"), (llama_cpp, "list"), (transformers_serve, "single")]
)
def test_a_language_model_teaches_behind_a_server(smoke: dict, outputs: Path, gguf: Path, serve, form: str) -> None:
    with serve(gguf) as (address, model):
        named = {"teacher": "openai", "teacher_model": model, "teacher_base_urls": [address], "teacher_form": form}
        size = {"tasks": ["query_rewrite"], "n_intents": 3, "prompts_per_intent": 2, "teacher_concurrency": 2}
        settings = resolve(DistillationSettings, smoke | named | size | {"min_words": 1})
        counts, usage = distil(settings, RunFolder(settings.run).start("01_pairs", settings))
    pairs = read_pairs(RunFolder(settings.run))
    assert counts["asked"] == 6 and len(pairs) >= 1 and made_up(pairs) < 0.2
    assert usage["tokens_in"] > usage["tokens_out"] > 0
    assert not any(name.startswith("failed_5") for name in usage)
