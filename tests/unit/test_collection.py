"""The embedded collection: the same every time, read back from its own files, judged by what items are made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import ImageColor

from udrl_utils.errors import SettingsError
from udrl_utils.ontology import ontology
from udrl_utils.search import drawn
from udrl_utils.search.catalogue import as_table, load_catalogue, read_judgements, texts_of, vectors_of
from udrl_utils.settings import SearchSettings, resolve
from udrl_utils.tasks import load_data


@pytest.fixture(scope="module")
def items() -> list[drawn.Facts]:
    return drawn.invent(0, 600)


def test_items_are_the_same_every_time(items: list[drawn.Facts]) -> None:
    assert drawn.invent(0, 200) == items[:200]
    assert drawn.invent(1, 200) != items[:200]


def test_tiles_are_the_same_every_time_and_show_the_colors_of_their_item(items: list[drawn.Facts]) -> None:
    for item in items[:20]:
        tile, wanted = drawn.tile(item), load_data("collection")
        assert tile.tobytes() == drawn.tile(item).tobytes()
        assert tile.size == tuple(wanted["forms"][item.form]["size"])
        pixels = {color for _, color in tile.getcolors(tile.width * tile.height)}
        assert {ImageColor.getrgb(color) for color in wanted["palettes"][item.palette]["colors"]} <= pixels


def test_the_longest_title_stays_within_its_tile(items: list[drawn.Facts]) -> None:
    item = replace(items[0], title="a neighborhood fundraiser for the extraordinarily photosynthesizing " * 3)
    tile, paper = drawn.tile(item), load_data("collection")["palettes"][item.palette]["colors"][0]
    edges = (tile.crop((x, int(tile.height * 0.65), x + 1, tile.height)) for x in (0, tile.width - 1))
    assert {color for edge in edges for _, color in edge.getcolors()} == {ImageColor.getrgb(paper)}


def test_the_drawn_catalogue_is_read_back_from_its_files(items: list[drawn.Facts], smoke: dict, tmp_path: Path) -> None:
    table, counts = load_catalogue(resolve(SearchSettings, smoke | {"n_items": 40}), tmp_path)
    assert not counts and len(table) == 40
    for facts, row in zip(items[:40], table.itertuples(), strict=True):
        assert (row.id, row.kind, row.title) == (facts.id, facts.kind, facts.title)
        assert row.keywords == ", ".join(facts.keywords)
    assert texts_of(table)[0] == f"{items[0].title}, {', '.join(items[0].keywords)}"


def test_keywords_weigh_twice_as_much_as_a_title() -> None:
    known = {"": (0, 0, 0), "koi": (1, 0, 0), "pond": (0, 1, 0), "calm": (0, 0, 1)}
    asked = []

    def embed(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return np.array([known[text] for text in texts], dtype=np.float32).reshape(-1, 3)

    rows = [("koi", "pond, calm"), ("koi", "pond"), ("pond", "")]
    table = as_table(
        {"id": k, "kind": "image", "title": t, "keywords": w, "image": ""} for k, (t, w) in enumerate(rows)
    )
    expected = np.array([(1, 2**0.5, 2**0.5), (1, 2, 0), (0, 1, 0)])
    assert vectors_of(table, embed) == pytest.approx(expected / np.linalg.norm(expected, axis=1, keepdims=True))
    assert asked == ["koi", "koi", "pond", "pond", "calm"], "each keyword is embedded once"
    assert vectors_of(table[2:], embed).shape == (1, 3)


def test_every_theme_has_tags_and_ways_to_ask() -> None:
    themes = load_data("collection")["themes"]
    assert set(themes) <= {domain.name for domain in ontology()}
    assert all(len(theme["asks"]) >= 3 and len(theme["tags"]) >= 5 for theme in themes.values())


def test_grades_follow_from_the_facts(items: list[drawn.Facts]) -> None:
    one = items[0]
    grades = drawn.grades({"theme": one.theme, "subject": one.subject, "style": one.style}, items)
    assert grades[one.id] == 3
    for item in items:
        same = (item.subject == one.subject) + (item.subject == one.subject and item.style == one.style)
        assert grades.get(item.id, 0) == (0 if item.theme != one.theme else 1 + same)


def test_intents_are_of_their_form_unseen_and_answerable(items: list[drawn.Facts]) -> None:
    before = drawn.judged_intents(items, 0, 15, ())
    seen = {one.text for one in before[::3]}
    judged = drawn.judged_intents(items, 0, 15, seen)
    assert not seen & {one.text for one in judged}
    assert {form: sum(one.form == form for one in judged) for form in drawn.FORMS} == dict.fromkeys(drawn.FORMS, 15)
    for one in judged:
        assert max(one.grades.values()) == 3, one.text
        assert len(one.text.split()) <= 2 if one.form == "short" else one.form != "long" or len(one.text.split()) >= 6


def test_visits_recommend_nothing_that_was_seen(items: list[drawn.Facts]) -> None:
    visits = drawn.visits(items, 0, 30)
    assert visits
    for visit in visits:
        assert len(visit.history) == drawn.HISTORY and visit.grades
        assert not set(visit.history) & set(visit.grades)


def test_judgements_of_ones_own(items: list[drawn.Facts], tmp_path: Path) -> None:
    file = tmp_path / "judgements.csv"
    file.write_text("intent,id,grade\nkoi pond,item-00003,2\nkoi pond,item-00005,1\nfox,gone,3\n")
    judged = read_judgements(str(file), as_table(map(vars, items)))
    assert [(one.text, one.form, one.grades) for one in judged] == [
        ("koi pond", "short", {"item-00003": 2, "item-00005": 1})
    ]
    file.write_text("intent,id,grade\nkoi pond,item-00003,good\n")
    with pytest.raises(SettingsError, match="has grade 'good'; grades are whole numbers from 0"):
        read_judgements(str(file), as_table(map(vars, items)))
    file.write_text("intent,id,grade\nfox,gone,3\n")
    with pytest.raises(SettingsError, match="names no item of the catalogue"):
        read_judgements(str(file), as_table(map(vars, items)))
