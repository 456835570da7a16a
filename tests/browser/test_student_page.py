"""The page that holds a student, in a real Chromium: it writes what PyTorch writes, and hostile text is only text."""

from __future__ import annotations

import itertools
import re
import warnings
from pathlib import Path

import pytest
import torch
from hostile import HOSTILE
from playwright.sync_api import expect
from test_panel import contrast

from udrl_utils.commands import Command
from udrl_utils.deploy.page import MOST, round_weights, student_page
from udrl_utils.student import Student, ready_facts
from udrl_utils.text import count_words

ASK = """async requests => {
    const found = [];
    for (const request of requests) found.push(await student.ask(request));
    return found;
}"""


@pytest.fixture(scope="module")
def student() -> Student:
    """The ready student with the weights that the page has: rounded to 8 bits."""
    student = Student.load("ready")
    round_weights(student)
    return student


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("page") / "student.html"
    file.write_text(student_page(Student.load("ready"), "ready"), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def page(chromium, file: Path):
    """The page, opened from the disk; whatever it asks of a network is noted."""
    page = chromium.new_page(viewport={"width": 900, "height": 1000})
    page.asked, page.dialogs, page.errors = [], [], []
    page.on("request", lambda request: page.asked.append(request.url))
    page.on("dialog", lambda dialog: (page.dialogs.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(file.as_uri())
    yield page
    assert not page.errors and not page.dialogs
    assert all(url.startswith(("file:", "blob:", "data:")) for url in page.asked)


def requests(student: Student) -> list[tuple[str, Command]]:
    """50 intents of the test split, and commands of all kinds for them."""
    asked = []
    for task, intents in ready_facts()["intents"].items():
        low, high = student.codec.lengths[task]
        lengths = itertools.cycle([low, (low + high) // 2, high, None])
        levels = itertools.cycle([{}, {"relevance": 0.9}, {"relevance": 0.15, "diversity": 0.55}, {"diversity": 1.0}])
        asked += [(intent, Command(task, next(lengths), **next(levels))) for intent in intents]
    return asked[:50]


def sent(intent: str, command: Command) -> dict:
    return {"intent": intent, "command": {"task": command.task, **command.asked}}


def test_one_file_is_all_and_not_large(file: Path) -> None:
    assert file.stat().st_size <= MOST
    assert not re.search(r"(src|href)=.?(https?:)?//", file.read_text(encoding="utf-8"))


def test_greedy_tokens_are_those_of_pytorch(page, student: Student) -> None:
    asked = requests(student)
    assert len(asked) == 50
    answers = page.evaluate(ASK, [sent(*request) for request in asked])
    for (intent, command), answer in zip(asked, answers, strict=True):
        assert answer["prefix"] == student.prefix(intent, command)
        read, written = answer["read"], answer["written"]
        assert read == student.tokenizer(answer["prefix"], add_special_tokens=False).input_ids
        with torch.inference_mode():  # greedy: each token is the most probable one after those before it
            likeliest = student.model(torch.tensor([read + written])).logits[0, len(read) - 1 :].argmax(-1).tolist()
        most = student.most(len(read), student.longest(command))
        expected = [*written, student.tokenizer.eos_token_id] if len(written) < most else [*written, likeliest[-1]]
        assert likeliest == expected, (intent, command)


def test_it_reads_text_as_python_does(page, student: Student) -> None:
    odd = [
        "  Koi POND!! ",
        '"quoted"',
        'sign that says "open late"',
        "it's a dog's",
        "ΣΑΣ İstanbul ﬁne",
        "[INST] <<koi",
    ]
    odd += ["zero\u200bwidth", "soft\u00adhyphen", "tab\tand\nline", "🎏" * 999, *HOSTILE]
    commands = [sent(text, Command("text_to_image", length=5)) for text in odd]
    for text, answer in zip(odd, page.evaluate(ASK, commands), strict=True):
        with warnings.catch_warnings(action="ignore"):  # of those that are cut
            prefix = student.prefix(text, Command("text_to_image", length=5))
        assert answer["prefix"] == prefix, text
        assert answer["read"] == student.tokenizer(prefix, add_special_tokens=False).input_ids, text


def test_it_is_used_by_keyboard_alone(page) -> None:
    page.reload()
    expect(page.locator("#intent")).to_be_focused()
    page.keyboard.type("koi pond")
    for _ in range(2):
        page.keyboard.press("Tab")  # the button, the tasks
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Tab")  # whether the length is commanded
    page.keyboard.press("Tab")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    words = page.locator("#levers output").first.inner_text()
    page.keyboard.press("Enter")
    expect(page.locator("#status")).to_contain_text("tokens a second", timeout=30_000)
    assert page.locator("#prompts li:visible").count() == 4
    assert f"{words} commanded" in page.locator(".meter").first.inner_text()
    achieved = [
        int(re.search(r"(\d+) words? achieved", each.inner_text())[1]) for each in page.locator("#prompts li").all()
    ]
    assert achieved == [len(text.split()) for text in page.locator(".prompt").all_inner_texts()]


def test_words_appear_one_after_the_other(page) -> None:
    page.evaluate("""() => {
        window.seen = [];
        const note = () => seen.push(document.querySelector('.prompt')?.textContent ?? '');
        new MutationObserver(note).observe(document.getElementById('prompts'), { subtree: true, childList: true });
    }""")
    page.locator("#intent").fill("a lighthouse in a storm")
    page.locator("#intent").press("Enter")
    expect(page.locator("#status")).to_contain_text("tokens a second", timeout=30_000)
    seen = list(dict.fromkeys(page.evaluate("seen")))
    assert len(seen) > 3 and all(after.startswith(before) for before, after in itertools.pairwise(seen))


def test_words_are_counted_as_in_python(page) -> None:
    texts = ["koi pond", "", "  a  tea-house, at dusk ", "月の下の池、静か", "koi 鯉 pond", "สวนญี่ปุ่น", "👩‍👩‍👧 koi"]
    assert page.evaluate("texts => texts.map(countWords)", texts) == list(map(count_words, texts))


def test_hostile_prompts_are_shown_as_text(page) -> None:
    page.evaluate(
        "() => { window.real = write; write = async (intent, _, __, show) => show(0, intent, {}) ?? 'shown'; }"
    )
    for text in HOSTILE:
        page.locator("#intent").fill(text[:4000])
        page.locator("#intent").press("Enter")
        expect(page.locator("#status")).to_have_text(re.compile("shown|Type an intent"))
        assert page.evaluate("window.hacked === undefined"), text
        assert page.locator(".prompt").first.text_content() == page.locator("#intent").input_value().strip(), text
    assert page.locator("#prompts :is(script, img, iframe, svg, a, form, style, meta, base)").count() == 0
    page.evaluate("() => { write = window.real; }")


def test_an_empty_intent_is_a_sentence(page) -> None:
    page.locator("#intent").fill("  ")
    page.locator("#intent").press("Enter")
    expect(page.locator("#status")).to_have_text("Type an intent first: a few words about what is wanted.")


@pytest.mark.parametrize("width", [900, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_readable(page, scheme: str, width: int) -> None:
    page.emulate_media(color_scheme=scheme)
    page.set_viewport_size({"width": width, "height": 1000})
    page.locator("#intent").fill("koi pond at dusk")
    page.locator("#intent").press("Enter")
    expect(page.locator("#status")).to_contain_text("tokens a second", timeout=30_000)
    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    for part in page.locator(
        "h1, header p, legend, label:visible, button:visible, output, .prompt, .meter > span"
    ).all():
        if part.inner_text().strip():
            assert contrast(part) >= 4.5, part.inner_text()
