"""Words that do not exist, and fluency: against counts and log-softmax by hand."""

from __future__ import annotations

import math

import pandas as pd
import pytest
import torch

from udrl_utils import wording
from udrl_utils.evaluation import set_metrics, system_metrics
from udrl_utils.gpt2 import train_tokenizer
from udrl_utils.language_models import load_causal_lm
from udrl_utils.settings import AnalysisSettings, IntervalSettings, resolve
from udrl_utils.vocabulary import Vocabulary

TEXTS = ["a quiet koi pond", "a quiet garden with koi and a red bridge over the pond", "red lanterns"]


@pytest.fixture
def settings(smoke: dict) -> AnalysisSettings:
    return resolve(AnalysisSettings, {**smoke, "fluency_model": ""})


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return Vocabulary(["a risograph of a koi pond", "quorblish lamps"], wording.english())


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> wording.Reader:
    """A random GPT-2 of two layers, saved and loaded as any folder would be."""
    from transformers import GPT2Config, GPT2LMHeadModel

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = train_tokenizer(TEXTS, 300, [])
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=64, n_embd=32, n_layer=2, n_head=2)
    config.bos_token_id = config.eos_token_id = tokenizer.eos_token_id
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return load_causal_lm(str(folder))


@pytest.mark.parametrize(
    ("intent", "prompt", "expected"),
    [
        ("koi pond", "A scottage by the koi pond", ["scottage"]),
        ("koi pond", "scottage, Scottage; two of six are not", ["scottage", "scottage"]),
        ("zorblat lamp", "two zorblats, one zorblat lamp", []),  # the intent's own coined word, inflected
        ("zorblat lamp", "the Zorblat's glow, a zorblat-shaped shade", []),
        ("koi pond", "the gardener's, the gardeners' and the tea-house’s lanterns", []),
        ("koi pond", "a moonlit-plarn bridge", ["moonlit-plarn"]),
        ("koi pond", "4k, 1920s, 16x9, f/1.8 and 3d", []),
        ("koi pond", "a cafe\u0301, a jalapeño, a naïve crème brûlée", []),
        ("koi pond", "risographs, quorblish", []),  # taught, and an inflection of what was taught
        ("koi pond", "", []),
    ],
)
def test_words_that_do_not_exist(vocabulary: Vocabulary, intent: str, prompt: str, expected: list) -> None:
    assert vocabulary.non_words(intent, prompt) == expected


def test_the_share_is_one_of_words(vocabulary: Vocabulary) -> None:
    assert vocabulary.share("koi pond", "a scottage of plarn, at dawn") == 2 / 6
    assert math.isnan(vocabulary.share("koi pond", "!"))


def test_only_the_train_split_teaches_words() -> None:
    columns = {"intent": ["zorblat", "glimrous"], "prompt": ["a blornet", "a frindle"], "split": ["train", "test"]}
    vocabulary = wording.vocabulary_of(pd.DataFrame(columns))
    found = vocabulary.non_words("lamp", "zorblat blornet glimrous frindle")
    assert found == ["glimrous", "frindle"]


def test_fluency_is_the_mean_log_softmax_of_the_tokens(tiny: wording.Reader) -> None:
    model, tokenizer = tiny
    prompts = ["a quiet koi pond", "red", "a red bridge over the quiet pond with lanterns"]
    found = wording.fluency(prompts, tiny)
    for prompt, score in zip(prompts, found, strict=True):
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(prompt).input_ids]])
        with torch.inference_mode():
            chances = model(ids).logits[0].float().log_softmax(-1)
        each = [float(chances[place, token]) for place, token in enumerate(ids[0, 1:].tolist())]
        assert score == pytest.approx(sum(each) / len(each), abs=1e-2 if model.dtype == torch.bfloat16 else 1e-5)


def test_a_batch_scores_as_one_by_one(tiny: wording.Reader) -> None:
    prompts = [*TEXTS, "", "pond", *("koi " * k for k in range(1, 2 * wording.BATCH_SIZE))]
    together = wording.fluency(prompts, tiny)
    singly = [wording.fluency([prompt], tiny)[0] for prompt in prompts]
    assert math.isnan(together[3]) and math.isnan(singly[3])
    assert together == pytest.approx(singly, abs=1e-2 if tiny[0].dtype == torch.bfloat16 else 1e-5, nan_ok=True)


def test_some_prompts_of_every_intent_are_read(tiny: wording.Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wording, "READ", 3)
    columns = {"system": "teacher", "task": "related_search", "intent": ["koi"] * 3 + ["pond"] * 3, "prompt": "a pond"}
    samples = pd.DataFrame({**columns, "split": "train"}, index=[9, 8, 7, 6, 5, 4])
    read = wording.worded(samples, samples, tiny)
    assert read.fluency.notna().tolist() == [True, True, False, True, False, False]
    assert read.non_words.tolist() == [0] * 6
    assert "fluency" not in wording.worded(samples, samples, None)


def test_both_are_set_metrics_with_intervals(settings: AnalysisSettings) -> None:
    columns = {"system": "teacher", "task": "related_search", "intent": ["koi", "koi", "pond"], "prompt": "a koi pond"}
    measured = {"relevance": 0.5, "diversity": 0.5, "non_words": [0.0, 0.5, 0.5], "fluency": [-4.0, None, None]}
    samples = pd.DataFrame({**columns, **measured})
    sets = set_metrics(samples, lambda texts: torch.nn.functional.normalize(torch.ones(len(texts), 2)).numpy())
    found = system_metrics(sets.fillna({"self_bleu": 0}), settings)["teacher"]
    assert found["non_words"] == {"mean": 0.375, "low": 0.25, "high": 0.5}
    assert found["fluency"] == {"mean": -4, "low": -4, "high": -4}


def test_fluency_is_set_beside_the_teachers_at_the_same_lengths() -> None:
    """Short prompts score -6 and long ones -3, the student's half a nat less: at equal lengths that is all there is."""
    rows = []
    for intent in range(12):
        lengths = {"teacher": (5, 21, 21, 21), "student_best": (5, 5, 5, 21), "echo": (41, 41)}
        for system, sizes in lengths.items():
            for size in sizes:
                score = (-6.0 if size == 5 else -3.0) - 0.5 * (system != "teacher")
                rows.append(("related_search", f"intent {intent}", system, "word " * size, score))
    samples = pd.DataFrame(rows, columns=["task", "intent", "system", "prompt", "fluency"])
    found = wording.fluency_vs_teacher(samples, IntervalSettings(run="x", seed=0, bootstrap_samples=100))
    assert set(found) == {"student_best"}, "nothing is said of lengths that the teacher never has"
    assert found["student_best"] == pytest.approx({"mean": -0.5, "low": -0.5, "high": -0.5, "matched": 1})


@pytest.mark.parametrize("model", ["", "models/nowhere.gguf"])
def test_without_a_model_one_line_says_so(smoke: dict, capsys: pytest.CaptureFixture, model: str) -> None:
    assert wording.fluency_reader(resolve(AnalysisSettings, {**smoke, "fluency_model": model})) is None
    told = capsys.readouterr().out
    assert told.startswith("fluency is not measured: ") and told.count("\n") == 1
    assert ("make llm" in told) == bool(model)
