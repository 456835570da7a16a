"""Shards on a Ray cluster of two node processes: the same bytes as without it, whoever dies, and nothing paid twice."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from faults.servers import ScriptedServer
from unit.test_local_teacher import save_llama

from udrl_utils import rewards
from udrl_utils.errors import RunError, SettingsError
from udrl_utils.pairs import distil
from udrl_utils.runs import RunFolder, write_json
from udrl_utils.settings import AnnotationSettings, DistillationSettings, resolve
from udrl_utils.tasks import TASKS
from udrl_utils.workers import spread

ray = pytest.importorskip("ray")
INTENTS, PROMPTS, CONCURRENCY = 120, 4, 2
SHARD = 12  # requests
NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}
COMMA = """
@reward("comma_share", unit="share")
def comma_share(pairs, embed):
    from udrl_utils.text import words
    return [prompt.count(",") / len(words(prompt)) for prompt in pairs.prompt]
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster of two nodes with one processor each, and processors that compute on one thread."""
    from ray.cluster_utils import Cluster

    before = psutil.Process().children(recursive=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patched:
        for name, value in {"RAY_worker_niceness": "0", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}.items():
            patched.setenv(name, value)
        made = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
        made.spare = made.add_node(**NODE)
        yield made
        ray.shutdown()
        made.shutdown()
    torch.set_num_threads(threads)
    left = set(psutil.Process().children(recursive=True)) - set(before)
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=20)


def steady(body: dict[str, Any], number: int) -> str:
    """Prompts that depend on the intent alone, or a judge's grade that depends on the prompt alone."""
    said = body["messages"][-1]["content"]
    if said.startswith("{"):
        return json.dumps({"score": 1 + zlib.crc32(json.loads(said)["prompt"].encode()) % 10})
    intent = json.loads(said.splitlines()[0].removeprefix("Intent: "))
    manners = ("oil painting of {}, framed", "photograph of {}", "woodcut of {} at dawn", "{}, as a poster, in red")
    return json.dumps([manner.format(intent) for manner in manners])


def questions(server: ScriptedServer) -> Counter:
    """How often each question came."""
    return Counter(body["messages"][-1]["content"] for body in server.bodies)


def values(smoke: dict, run: str, **changes: Any) -> dict:
    sizes = {"n_intents": INTENTS, "prompts_per_intent": PROMPTS, "shard_size": SHARD}
    return smoke | sizes | {"run": run} | changes


def pairs_of(smoke: dict, run: str, **changes: Any) -> dict[str, int]:
    """Notebook 01; returns what its teacher has used."""
    settings = resolve(DistillationSettings, values(smoke, run, **changes))
    folder = RunFolder(run).start("01_pairs", settings)
    try:
        counts, usage = distil(settings, folder)
        folder.finish("01_pairs", settings, counts=counts, usage=usage)
        return usage
    finally:
        folder.release()


def annotate(smoke: dict, run: str, **changes: Any) -> RunFolder:
    """Notebook 02."""
    settings = resolve(AnnotationSettings, values(smoke, run, **changes))
    folder = RunFolder(run).start("02_annotated", settings)
    rewards.add_judge(settings, folder)
    rewards.annotate_run(settings, folder)
    folder.finish("02_annotated", settings)
    return folder


def same_shards(outputs: Path, stage: str, shards: int) -> None:
    """Assert that the runs `alone` and `ray` have the same bytes."""
    files = sorted((outputs / "alone" / stage).glob("part-*.parquet"))
    assert len(files) == shards
    for file in files:
        assert file.read_bytes() == (outputs / "ray" / stage / file.name).read_bytes(), file.name


def wait_for(condition: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "it never came to that"
        time.sleep(0.02)
    return found


def workers() -> list[psutil.Process]:
    """Workers that are making a shard."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [process] * ("ray::Worker.make" in " ".join(process.cmdline()))
    return found


def test_pairs_are_the_same_and_paid_once_when_a_worker_is_killed_and_one_comes(
    smoke: dict, outputs: Path, cluster: Any
) -> None:
    kept: list[int] = []

    def lines() -> list[int]:
        folder = outputs / "ray" / "01_pairs"
        files = [f for f in folder.glob("_replies/*") if not (folder / f"{f.stem}.parquet").exists()]
        return [file.read_text().count("\n") for file in files]

    def kill_one_and_add_one() -> None:
        def halfway() -> list[psutil.Process]:
            found = workers()
            for process in found:
                process.suspend()
            if len(found) == 2 and (at := lines()) and all(3 < n < SHARD for n in at):
                return found
            for process in found:
                process.resume()
            return []

        first, second = wait_for(halfway)
        kept.append(min(lines()))
        first.send_signal(signal.SIGKILL)
        second.resume()
        server.latency = 1.0  # until the new node works too
        cluster.add_node(**NODE)
        wait_for(lambda: len(workers()) == 3)
        server.latency = 0.0

    with ScriptedServer(answer=steady) as server:
        served = {"teacher": "openai", "teacher_model": "m", "teacher_form": "list", "teacher_base_urls": [server.url]}
        served |= {"teacher_concurrency": CONCURRENCY}
        alone = pairs_of(smoke, "alone", **served)
        server.bodies.clear()
        server.latency = 0.3
        on_ray = served | {"workers": "ray", "ray_address": cluster.address}
        with pytest.raises(RunError, match="raise teacher_budget and run again"):
            pairs_of(smoke, "ray", **on_ray, teacher_budget=30)
        assert len(server.bodies) == 30, "all workers share one budget"
        with ThreadPoolExecutor(1) as beside:
            made = beside.submit(pairs_of, smoke, "ray", **on_ray, teacher_budget=INTENTS + CONCURRENCY)
            kill_one_and_add_one()
            assert made.result() == alone
    same_shards(outputs, "01_pairs", INTENTS // SHARD)
    asked = questions(server)
    assert len(asked) == INTENTS and sum(asked.values()) - INTENTS <= CONCURRENCY, "only what was under way is repeated"
    assert kept[0] > CONCURRENCY, "the kill had more to lose than what was under way"
    nodes = RunFolder("ray").read()["stages"]["01_pairs"]["nodes"]
    assert all(node["ray"] == ray.__version__ and node["python"] and node["machine"] for node in nodes)
    assert not RunFolder("alone").read()["stages"]["01_pairs"].keys() & {"nodes"}


def test_rewards_are_the_same_when_a_node_dies(
    smoke: dict, outputs: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(rewards, "REWARDS", dict(rewards.REWARDS))
    (tmp_path / "own.py").write_text(COMMA)
    exec(compile(COMMA, str(tmp_path / "own.py"), "exec"), {"reward": rewards.reward, "__name__": "notebook"})
    monkeypatch.setenv("OPENAI_API_KEY", "sk-known-to-the-notebook-alone")

    def remove_a_node() -> None:
        folder = outputs / "ray" / "02_annotated"
        wait_for(lambda: len(list(folder.glob("part-*.parquet"))) >= 2)
        cluster.remove_node(cluster.spare, allow_graceful=False)

    with ScriptedServer(latency=0.02, answer=steady) as server:
        judged = {"rewards": ["length", "relevance", "diversity", "comma_share", "judge"], "judge_model": "m"}
        judged |= {"judge_base_urls": [server.url], "judge_concurrency": CONCURRENCY}
        for run in ("alone", "ray"):
            pairs_of(smoke, run)
            server.bodies.clear()
            how = {"workers": "ray", "ray_address": cluster.address} if run == "ray" else {}
            votes = len(rewards.read_shards(RunFolder(run) / "01_pairs", columns=["task"]))
            with ThreadPoolExecutor(1) as beside:
                made = beside.submit(annotate, smoke, run, **judged, **how, judge_budget=votes + CONCURRENCY)
                if how:
                    remove_a_node()
                made.result()
            asked = questions(server)
            assert len(asked) == votes and sum(asked.values()) - votes <= CONCURRENCY * bool(how)
    same_shards(outputs, "02_annotated", INTENTS // SHARD)
    assert set(server.keys) == {"Bearer sk-known-to-the-notebook-alone"}
    assert not any(b"known-to-the-notebook" in file.read_bytes() for file in outputs.rglob("*") if file.is_file())


def test_own_pairs_of_own_tasks_and_a_model_on_each_worker(
    smoke: dict, outputs: Path, cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd
) -> None:
    monkeypatch.setattr("udrl_utils.tasks.TASKS", TASKS)
    monkeypatch.setitem(TASKS, "greeting", None)  # forgotten after the test
    example = {"intent": "morning", "prompts": ["good morning", "a very good morning to you", "good morning, all"]}
    own = {"greeting": {"definition": "a greeting", "instruction": "Greet.", "examples": [example] * 3}}
    (tmp_path / "tasks.yaml").write_text(yaml.safe_dump(own))
    rows = [("greeting", f"greeting {k} of the day", f"hello {k} to {n} people") for k in range(40) for n in range(3)]
    lines = [json.dumps(dict(zip(("task", "intent", "prompt"), row, strict=True))) for row in rows]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    model = str(save_llama(tmp_path / "llama"))
    write_json(tmp_path / "llama" / "generation_config.json", {"eos_token_id": list(range(100))})  # else it hardly ends
    given = {"tasks_file": str(tmp_path / "tasks.yaml"), "tasks": ["greeting"], "pairs": str(tmp_path / "pairs.jsonl")}
    written = {"teacher": "local", "teacher_model": model, "tasks": ["related_search"], "n_intents": 36, "min_words": 1}
    for changes, shards in ((given, 4), (written, 3)):
        for run, how in {"alone": {}, "ray": {"workers": "ray", "ray_address": cluster.address}}.items():
            pairs_of(smoke, run, **changes, **how, max_words=90)
        same_shards(outputs, "01_pairs", shards)
        for run in ("alone", "ray"):
            (outputs / run).rename(tmp_path / f"{run}-{shards}")
    loads = [line for line in capfd.readouterr().out.splitlines() if "teacher llama on cpu" in line]
    assert 2 <= len(loads) <= 3, "once here, and once per worker"


def on_ray(cluster: Any, tmp_path: Path, make: Callable[..., None], **changes: Any) -> list[Path]:
    """Two items made by a function on the cluster."""
    settings = resolve(DistillationSettings, {"workers": "ray", "ray_address": cluster.address} | changes)
    write_json(tmp_path / "stage" / "_stamp.json", {})
    items = [(tmp_path / "stage" / f"part-{k}",) for k in range(2)]
    build = lambda budget, reopen: make  # noqa: E731
    return [file for (file,) in spread(settings, RunFolder(tmp_path), "stage", build, items, lambda file: 0)]


def test_a_shard_that_ends_its_workers_is_told_in_one_line(cluster: Any, tmp_path: Path, capsys) -> None:
    def dies(file: Path) -> None:
        if file.name == "part-1":
            os.kill(os.getpid(), signal.SIGKILL)

    def swells(file: Path) -> None:
        raise MemoryError("unable to allocate 9 TiB")

    with pytest.raises(RunError, match=r"part-1 cannot be made: "):
        on_ray(cluster, tmp_path, dies)
    assert capsys.readouterr().out.count("a worker ended while it made part-1") == 3
    with pytest.raises(RunError, match=r"part-. cannot be made: a worker ran out of memory; start fewer .*shard_size"):
        on_ray(cluster, tmp_path, swells)


def test_a_folder_that_workers_do_not_see_is_told(cluster: Any, tmp_path: Path) -> None:
    (tmp_path / "stage").mkdir()
    settings = resolve(DistillationSettings, {"workers": "ray", "ray_address": cluster.address})
    with pytest.raises(RunError, match=r"does not see .*: UDRL_OUTPUTS should be storage that all nodes share"):
        items = iter([(tmp_path / "stage" / "part-0",)])
        list(spread(settings, RunFolder(tmp_path), "stage", lambda *how: print, items, lambda file: 0))


def test_a_cluster_of_other_versions_or_none_or_no_ray(cluster: Any, tmp_path: Path, monkeypatch) -> None:
    def tried(match: str, kind: type[Exception] = RunError, **changes: Any) -> None:
        with pytest.raises(kind, match=match) as caught:
            on_ray(cluster, tmp_path, print, **changes)
        assert "\n" not in str(caught.value)

    began = time.monotonic()
    tried("parameter ray_address='127.0.0.1:9': the cluster cannot be used: .*refused", ray_address="127.0.0.1:9")
    assert time.monotonic() - began < 10
    with monkeypatch.context() as patched:
        patched.setattr(ray, "__version__", "0.1.2")
        tried(r"the cluster cannot be used: Version mismatch: .*Ray: 2[.\d]+ .* Ray: 0.1.2")
    monkeypatch.setitem(sys.modules, "ray", None)
    tried(r"parameter workers='ray' needs the scale extra: pip install 'udrl_utils\[scale\]'", SettingsError)
    with pytest.raises(SettingsError, match=r"parameter ray_address='ray://head' .*host:port"):
        resolve(DistillationSettings, {"ray_address": "ray://head"})
