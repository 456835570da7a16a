"""Notebooks 01 to 05 and the server on what people bring: a task of their own, intents in four languages, a server as
their teacher, and an encoder that reads all of them. Nothing in the package is edited."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pandas as pd
import pytest
import yaml
from faults.servers import ScriptedServer

from udrl_utils.gpt2 import train_tokenizer
from udrl_utils.settings import NOTEBOOKS

# nouns, what is typed of them, and what the teacher writes
LANGUAGES = [
    ("橘猫 锦鲤 熊猫 海龟 猎鹰 水獭 白鹭 刺猬 企鹅 骆驼 孔雀 鲸鱼", ("{}杯子", "{}海报"),
     ("手工制作的{}，送礼佳品", "小巧的{}，蓝色外观", "经久耐用的{}，带来一整天的好心情")),
    ("قطة سمكة باندا سلحفاة صقر ثعلب حصان قنفذ بطريق جمل طاووس حوت", ("كوب {}", "ملصق {}"),
     ("{} مصنوع يدويا", "{} صغير بلون أزرق", "{} متين يدوم سنوات طويلة ويسهل استخدامه كل يوم")),
    ("बिल्ली मछली पांडा कछुआ बाज लोमड़ी घोड़ा साही पेंगुइन ऊंट मोर व्हेल", ("{} का मग", "{} का पोस्टर"),
     ("{} हाथ से बना", "छोटा नीला {}", "टिकाऊ {} जो सालों चलता है और रोज काम आता है")),
    ("Katze Karpfen Panda Schildkröte Falke Fuchs Pferd Igel Pinguin Kamel Pfau Wal", ("Becher {}", "Poster {}"),
     ("{}, von Hand gemacht", "kleine {} in Blau", "{}, die Jahre hält und jeden Tag Freude macht")),
]  # fmt: skip
WRITTEN = {
    form.format(noun): [way.format(form.format(noun)) for way in ways]
    for nouns, forms, ways in LANGUAGES
    for noun in nouns.split()
    for form in forms
}
PLACES = ("tea", "soup", "milk")
TASK = {
    "definition": "A sentence that sells a product.",
    "instruction": "Write one sentence that describes the product.",
    "examples": [{"intent": f"{w} mug", "prompts": [f"a {w} mug", f"a mug for {w}", f"a big {w} mug"]} for w in PLACES],
}


def multilingual_encoder(folder: Path) -> Path:
    """An encoder by Sentence-Transformers: the mean of a fixed vector for each token, in any script."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding

    texts = [text for intent, prompts in WRITTEN.items() for text in (intent, *prompts)]
    torch.manual_seed(0)
    tokenizer = train_tokenizer(texts, 600, []).backend_tokenizer
    SentenceTransformer(modules=[StaticEmbedding(tokenizer, embedding_dim=48)]).save(str(folder))
    return folder


def printed(run: Path, stage: str) -> str:
    """What a notebook of the run printed and showed."""
    notebook = nbformat.read(run / "notebooks" / f"{NOTEBOOKS[stage]}.ipynb", as_version=4)
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "".join(o.get("text") or o.get("data", {}).get("text/plain", "") for o in outputs)


def udrl(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "udrl_utils.cli", *map(str, arguments)]


@pytest.mark.slow
def test_an_own_task_in_four_languages_goes_through_the_notebooks_the_panel_and_the_server(tmp_path: Path) -> None:
    (tmp_path / "intents.json").write_text(json.dumps(list(WRITTEN), ensure_ascii=False), encoding="utf-8")
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump({"product_description": TASK}))
    environment = {**os.environ, "UDRL_OUTPUTS": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    with ScriptedServer(answer=lambda body, _: WRITTEN[body["messages"][-1]["content"]][body["seed"]]) as server:
        changes = {
            "intents": tmp_path / "intents.json", "n_intents": 0, "prompts_per_intent": 3, "test_fraction": 0.3,
            "validation_fraction": 0.15, "tasks_file": tmp_path / "tasks.yaml", "tasks": "[product_description]",
            "teacher": "openai", "teacher_model": "m", "teacher_base_urls": f"[{server.url}]", "teacher_budget": 300,
            "encoder": multilingual_encoder(tmp_path / "encoder"), "unseen_lengths": "{}", "epochs": 6, "rounds": 0,
        }  # fmt: skip
        sets = [part for name, value in changes.items() for part in ("--set", f"{name}={value}")]
        command = udrl("run", "--preset", "smoke", "--run", "own", "--to", "5", *sets)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
        assert len(server.bodies) == 3 * len(WRITTEN), "one question for each prompt, none twice"
    run = tmp_path / "own"
    pairs = pd.read_parquet(run / "02_annotated")
    assert set(pairs.task) == {"product_description"} and pairs.intent.nunique() > 0.9 * len(WRITTEN)
    assert pairs.relevance.notna().all() and "reads English" not in printed(run, "02_annotated")
    assert "product_description" in (run / "notebooks" / f"{NOTEBOOKS['05_probes']}.ipynb").read_text()
    metrics = json.loads((run / "04_analysis" / "metrics.json").read_text())
    assert metrics["systems"]["teacher"]["broken"]["mean"] == metrics["systems"]["teacher"]["non_words"]["mean"] == 0
    assert "product_description" in (run / "report.html").read_text()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with subprocess.Popen(udrl("serve", "own", "--port", str(port)), env=environment) as serving:
        try:
            body = {"model": "own:product_description", "messages": [{"role": "user", "content": "橘猫杯子"}]}
            asked = urllib.request.Request(
                f"http://127.0.0.1:{port}/v1/chat/completions",
                json.dumps(body).encode(),
                {"Content-Type": "application/json"},
            )
            answer = reply_of(asked, serving)
        finally:
            serving.send_signal(signal.SIGTERM)
    assert answer["command"]["task"] == "product_description" and answer["choices"][0]["message"]["content"]


def reply_of(asked: urllib.request.Request, serving: subprocess.Popen) -> dict:
    """The reply of a server that may still be starting."""
    for _ in range(300):
        assert serving.poll() is None, "the server has ended"
        try:
            return json.loads(urllib.request.urlopen(asked, timeout=60).read())
        except urllib.error.URLError as error:
            if isinstance(error, urllib.error.HTTPError):
                raise
            time.sleep(0.5)
    raise AssertionError("the server does not answer")
