"""Stamps: what was made before is used again if, and only if, it was made from the same."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from udrl_utils.errors import RunError
from udrl_utils.runs import STAMP, digest, keep, renew, stamp
from udrl_utils.settings import SETTINGS, resolve


@pytest.mark.filterwarnings("ignore:Pydantic serializer")
@pytest.mark.parametrize("stage", SETTINGS)
def test_a_stamp_changes_with_every_setting_that_changes_a_result_and_with_no_other(smoke: dict, stage: str) -> None:
    settings = resolve(SETTINGS[stage], dict(smoke))
    for name in type(settings).model_fields:
        same = stamp(settings) == stamp(settings.model_copy(update={name: "another value"}))
        assert same == (name in settings.HOW), name


def test_what_says_how_a_stage_is_made_is_marked() -> None:
    marked = set().union(*(kind.HOW for kind in SETTINGS.values()))
    named = {name for kind in SETTINGS.values() for name in kind.model_fields}
    ways = ("_concurrency", "_timeout", "_budget", "_prices", "_base_urls", "_repo", "_batch")
    sampling = {"temperature", "min_p", "guidance", "candidates"}  # saved by 03, and each later stage has its own
    others = {"run", "report_to", "workers", "ray_address"}
    assert {name for name in named if name.endswith(ways)} | others | sampling == marked


def test_a_digest_is_of_the_content(tmp_path: Path) -> None:
    table = pd.DataFrame({"intent": ["koi", None], "length": [3, 4.5]})
    assert digest(table) == digest(table.copy()) != digest(table.assign(length=3))
    for name in "ab":
        (tmp_path / name).write_text("koi")
    assert digest(tmp_path / "a") == digest(tmp_path / "b") != digest("koi")
    (tmp_path / "b").write_text("koi pond")
    assert digest(tmp_path / "a") != digest(tmp_path / "b")


def test_cheap_content_is_made_anew_with_one_line_and_costly_content_is_kept(
    smoke: dict, tmp_path: Path, capsys
) -> None:
    settings = resolve(SETTINGS["01_pairs"], dict(smoke))
    source, folder = tmp_path / "mine.csv", tmp_path / "made"
    source.write_text("koi")
    folder.mkdir()

    def content() -> set[str]:
        return {path.name for path in folder.iterdir()}

    renew(folder, stamp(settings, [source]))
    (folder / "part-00000.parquet").touch()
    (folder / "_replies").mkdir()
    renew(folder, stamp(settings, [source]))
    keep(folder, stamp(settings, [source]))
    assert len(content()) == 3 and capsys.readouterr().out == ""
    source.write_text("koi pond")
    with pytest.raises(RunError, match=r"was made with other content of mine\.csv: choose another run name, or delete"):
        keep(folder, stamp(settings, [source]))
    other = stamp(settings.model_copy(update={"min_words": 3}), [source])
    with pytest.raises(RunError, match="was made with min_words=2, now min_words=3: choose another run name"):
        keep(folder, other)
    renew(folder, other, "part-*")
    assert content() == {STAMP, "_replies"}
    assert capsys.readouterr().out == "made is made anew: it was made with min_words=2, now min_words=3\n"
    keep(folder, stamp(settings))
    (folder / STAMP).unlink()
    (folder / "part-00000.parquet").touch()
    with pytest.raises(RunError, match="was made with settings that it does not name"):
        keep(folder, stamp(settings))
