"""The catalogue of icons and judged searches: what is indexed, what is searched for, what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from udrl_utils.errors import SettingsError
from udrl_utils.search import icons
from udrl_utils.search.catalogue import as_table, judged_searches, load_catalogue, read_judgements, texts_of, vectors_of
from udrl_utils.search.images import open_image
from udrl_utils.settings import SearchSettings, resolve


def test_icons_come_with_names_terms_and_pictures(smoke: dict, tmp_path: Path) -> None:
    table, counts = load_catalogue(resolve(SearchSettings, smoke | {"n_items": 20}), tmp_path)
    assert not counts and len(table) == 20
    for row in table.itertuples():
        assert row.title == icons.icons()[row.id]["label"]
        assert row.keywords == ", ".join(icons.halves(row.id)[0])
        assert open_image(Path(row.image))[0].height == icons.SIZE
    assert texts_of(table)[0].startswith(table.title[0])


def test_half_of_an_icons_terms_are_indexed_and_the_others_searched_for() -> None:
    for name, icon in icons.icons().items():
        indexed, searched = icons.halves(name)
        assert 0 <= len(indexed) - len(searched) <= 1 and not set(indexed) & set(searched)
        assert {*indexed, *searched} <= {str(term).strip().lower() for term in icon["search"]["terms"]}


def test_every_icon_that_people_gave_a_term_to_is_relevant_to_it() -> None:
    ids = list(icons.icons())[:300]
    judged = icons.judgements(ids)
    terms = {name: {term for half in icons.halves(name) for term in half} for name in ids}
    assert len(judged) > 500
    for term, grades in judged.items():
        assert set(grades) == {name for name in ids if term in terms[name]}
        assert any(term in icons.halves(name)[1] for name in grades), "some icon is described without it"


def test_categories_hold_known_icons() -> None:
    groups = icons.groups(set(icons.icons()))
    assert len(groups) > 50 and all(set(group) <= icons.icons().keys() for group in groups)


def test_keywords_weigh_twice_as_much_as_a_title() -> None:
    known = {"": (0, 0, 0), "koi": (1, 0, 0), "pond": (0, 1, 0), "calm": (0, 0, 1)}
    asked = []

    def embed(texts: list[str]) -> np.ndarray:
        asked.extend(texts)
        return np.array([known[text] for text in texts], dtype=np.float32).reshape(-1, 3)

    rows = [("koi", "pond, calm"), ("koi", "pond"), ("pond", "")]
    table = as_table({"id": k, "title": t, "keywords": w, "image": ""} for k, (t, w) in enumerate(rows))
    expected = np.array([(1, 2**0.5, 2**0.5), (1, 2, 0), (0, 1, 0)])
    assert vectors_of(table, embed) == pytest.approx(expected / np.linalg.norm(expected, axis=1, keepdims=True))
    assert asked == ["koi", "koi", "pond", "pond", "calm"], "each keyword is embedded once"
    assert vectors_of(table[2:], embed).shape == (1, 3)


def test_judgements_of_ones_own(smoke: dict, tmp_path: Path) -> None:
    file, known = tmp_path / "judgements.csv", {"a", "b"}
    file.write_text("intent,id,grade\nkoi pond,a,2\nkoi pond,b,0\nfox,gone,3\n")
    assert read_judgements(str(file), known) == {"koi pond": {"a": 2, "b": 0}}
    file.write_text("intent,id,grade\nkoi pond,a,good\n")
    with pytest.raises(SettingsError, match="has grade 'good'; grades are whole numbers from 0"):
        read_judgements(str(file), known)
    file.write_text("intent,id,grade\nfox,gone,3\n")
    with pytest.raises(SettingsError, match="names no item of the catalogue"):
        read_judgements(str(file), known)


def test_as_many_searches_as_asked_for_the_same_every_time(smoke: dict) -> None:
    items = as_table({"id": name, "title": name, "keywords": "", "image": ""} for name in list(icons.icons())[:200])
    few, more = (judged_searches(resolve(SearchSettings, smoke | {"search_intents": n}), items) for n in (5, 50))
    assert len(few) == 5 and more[:5] == few
    assert not judged_searches(resolve(SearchSettings, smoke | {"catalog": "items.csv"}), items)
