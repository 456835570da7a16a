"""Language models as baselines: how they are named, what is kept of what they write, what systems cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from faults.servers import ScriptedServer

from udrl_utils.baselines import ask_baselines, baselines_of, cost_of, student_costs
from udrl_utils.commands import CommandCodec
from udrl_utils.errors import SettingsError
from udrl_utils.gpt2 import new_student, train_tokenizer
from udrl_utils.runs import RunFolder
from udrl_utils.settings import AnalysisSettings, DistillationSettings, TrainingSettings, resolve
from udrl_utils.student import Student
from udrl_utils.tasks import TASKS
from udrl_utils.teachers import OpenAITeacher
from udrl_utils.teachers.local import LocalTeacher

INTENTS = {"text_to_image": ["koi pond", "tea house"], "related_search": ["owl"]}


def named(smoke: dict, *baselines: str) -> tuple[AnalysisSettings, DistillationSettings]:
    values = smoke | {"baselines": list(baselines), "prompts_per_intent": 8, "teacher_form": "list"}
    return resolve(AnalysisSettings, dict(values)), resolve(DistillationSettings, dict(values))


def test_backends_are_named_in_one_word(smoke: dict) -> None:
    found = baselines_of(*named(smoke, "local:Qwen/Qwen3-8B", "openai:llama3:8b@http://localhost:11434/v1"))
    assert [type(teacher) for teacher in found.values()] == [LocalTeacher, OpenAITeacher]
    assert list(found) == ["Qwen/Qwen3-8B", "llama3:8b"]
    assert found["llama3:8b"].client.base_urls == ["http://localhost:11434/v1"]


@pytest.mark.parametrize("text", ["Qwen/Qwen3-8B", "openai:llama3", "recorded"])
def test_other_words_are_one_line(smoke: dict, text: str) -> None:
    with pytest.raises(SettingsError, match=r"baselines: .* is neither local:<model> nor openai:<model>@"):
        baselines_of(*named(smoke, text))


def test_a_baseline_is_asked_once_filtered_and_timed(smoke: dict, outputs: Path) -> None:
    def answer(body: dict, number: int) -> str:
        intent = json.loads(body["messages"][-1]["content"].splitlines()[0].removeprefix("Intent: "))
        return json.dumps([f"a print of {intent} number {number}", "<b>bold</b> words here", *["short"] * 6])

    run = RunFolder("with_baselines")
    with ScriptedServer(latency=0.02, answer=answer) as server:
        settings, rules = named(smoke, f"openai:org/some-model@{server.url}")
        run.finish("01_pairs", rules)
        tables, costs = ask_baselines(baselines_of(settings, rules), INTENTS, run, settings)
        again, _ = ask_baselines(baselines_of(settings, rules), INTENTS, run, settings)
    assert len(server.bodies) == 3
    assert tables["org/some-model"].intent.tolist() == ["koi pond", "tea house", "owl"]
    assert tables["org/some-model"].equals(again["org/some-model"])
    assert costs["org/some-model"]["parameters"] is None
    assert (
        0.02 <= costs["org/some-model"]["seconds_per_set"]["low"] <= costs["org/some-model"]["seconds_per_set"]["high"]
    )


def test_what_the_student_costs(smoke: dict) -> None:
    codec = CommandCodec(2, 64, {task: {} for task in TASKS})
    tokenizer = train_tokenizer(INTENTS, 300, codec.tokens())
    student = Student(new_student(resolve(TrainingSettings, dict(smoke)), tokenizer), tokenizer, codec)
    cost = student_costs(student, INTENTS, 2, named(smoke)[0])
    assert cost["parameters"] == student.model.num_parameters()
    assert cost["weights_mb"] == pytest.approx(4e-6 * cost["parameters"])
    assert cost["seconds_per_set"]["mean"] > 0
    assert cost_of(None, [], named(smoke)[0]) == {"parameters": None, "weights_mb": None, "seconds_per_set": None}


def test_the_paper_preset_names_its_baselines() -> None:
    preset = Path(__file__).parents[2] / "notebooks" / "presets" / "paper.yaml"
    values = yaml.safe_load(preset.read_text())
    settings, rules = resolve(AnalysisSettings, dict(values)), resolve(DistillationSettings, dict(values))
    assert len(baselines_of(settings, rules)) == 3
