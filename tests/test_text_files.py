"""Text is read as people's editors leave it: with and without a byte-order mark, with any line ending."""

import codecs
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from sliders.concept import Concept, read_prompts
from sliders.errors import SliderError
from sliders.evaluation.texts.knowledge import Facts
from sliders.files import read_lines, read_text
from sliders.language.facts import read_rewrites
from sliders.language.in_context import Task

SEPARATORS = "\u2028\u2029\x85\x0b\x0c\x1c\x1d\x1e"
"""What `str.splitlines` takes for the end of a line, and no editor writes for one."""

ENCODED: dict[str, Callable[[str], bytes]] = {
    "plain": lambda text: text.encode(),
    "mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "Windows": lambda text: codecs.BOM_UTF8 + text.replace("\n", "\r\n").encode(),
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "CR": lambda text: text.replace("\n", "\r").encode(),
}
WIDE = {
    "UTF-16": codecs.BOM_UTF16_LE + "a man\n".encode("utf-16-le"),
    "UTF-16, the other way round": codecs.BOM_UTF16_BE + "a man\n".encode("utf-16-be"),
    "UTF-32": codecs.BOM_UTF32_LE + "a man\n".encode("utf-32-le"),
}

CONCEPT = {"name": "smile", "target": "a person", "positives": ["a häppy person"], "negatives": ["a sad person"]}
RELATION = {"prompt": "{} is in", "paraphrases": [], "change": {"Paris": ["France", "Spain"]}, "neighbours": {}}
FACTS = {
    "name": "capitals",
    "questions": ["The capital of {}?"],
    "heldout_questions": ["Where is {}'s government?"],
    "heldout_stem": "It is",
    "facts": {country: f"town {country}" for country in "abcd"},
}
TASK = {"name": "plural", "examples": {"a": "as"}, "heldout": {"b": "bs"}}


def _yaml(plain: Any) -> str:
    return yaml.safe_dump(plain, allow_unicode=True)


READERS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "prompts": (read_prompts, "# a comment\na man\n\na wömän\n"),
    "concept": (Concept.load, _yaml(CONCEPT)),
    "rewrites": (read_rewrites, _yaml([RELATION])),
    "facts": (Facts.load, _yaml(FACTS)),
    "task": (Task.load, _yaml(TASK)),
}


@pytest.mark.parametrize("encoded", ENCODED)
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_of_text_takes_it_as_it_is(reader: str, encoded: str, tmp_path: Path) -> None:
    read, text = READERS[reader]
    file, other = tmp_path / "plain.txt", tmp_path / "other.txt"
    file.write_bytes(text.encode())
    other.write_bytes(ENCODED[encoded](text))
    assert read(other) == read(file)


@pytest.mark.parametrize("wide", WIDE)
@pytest.mark.parametrize("reader", READERS)
def test_another_encoding_is_one_clear_line(reader: str, wide: str, tmp_path: Path) -> None:
    file = tmp_path / "wide.txt"
    file.write_bytes(WIDE[wide])
    with pytest.raises(SliderError, match=r"wide\.txt: it is in UTF-16 or UTF-32; save it as UTF-8$") as caught:
        READERS[reader][0](file)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("reader", ["concept", "rewrites", "facts", "task"])
@pytest.mark.parametrize("text", ["a: [1", "a: 2001-99-99", "\tx: 1", "a: !!python/name:os.system", "- 1", "3", ""])
def test_what_is_no_such_file_is_one_line(reader: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(SliderError, match=r"bad\.yaml") as caught:
        READERS[reader][0](tmp_path / "bad.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("separator", SEPARATORS)
def test_what_ends_no_line_in_an_editor_ends_none_here(separator: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(f"a man{separator}with a hat\r\na woman\n".encode())
    assert len(file.read_text(encoding="utf-8").splitlines()) == 3  # the control
    assert read_prompts(file) == [f"a man{separator}with a hat", "a woman"]


def test_lines_and_text(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(codecs.BOM_UTF8 + b"one\r\ntwo\rthree\n\xef\xbb\xbffour")
    assert read_text(file) == "one\ntwo\nthree\n\ufefffour"
    assert read_lines(file) == ["one", "two", "three", "\ufefffour"]
    with pytest.raises(SliderError, match=r"cannot read the task .*absent"):
        read_text(tmp_path / "absent", "task")
    with pytest.raises(SliderError, match="cannot read the file"):
        read_text(tmp_path)
    file.write_bytes(json.dumps("\xe4", ensure_ascii=False).encode("latin-1"))
    with pytest.raises(SliderError, match="not text in UTF-8"):
        read_text(file)
