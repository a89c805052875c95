"""A concept's file, and what its errors say."""

import json
import os
import shutil
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest
import yaml

from sliders.concept import Concept, Measure
from sliders.errors import SliderError

PLAIN: dict[str, Any] = {
    "name": "smile",
    "target": "a person",
    "positives": ["a happy person"],
    "negatives": ["a sad person", "an angry person"],
    "contexts": ["", ", with a hat"],
    "preserve": ["a dog"],
    "measure": {"attribute": "expression", "value": "happy", "prompts": ["a man", "a woman"]},
}


def write(folder: Path, plain: object) -> Path:
    """A YAML file with this in it."""
    file = folder / "smile.yaml"
    file.write_text(plain if isinstance(plain, str) else yaml.safe_dump(plain))
    return file


def test_load(tmp_path: Path) -> None:
    concept = Concept.load(write(tmp_path, PLAIN))
    assert concept.target == "a person"
    assert concept.negatives == ["a sad person", "an angry person"]
    assert concept.measure == Measure("expression", ["a man", "a woman"], "happy")


@pytest.mark.parametrize("dropped", [(), ("contexts", "preserve", "measure")])
def test_dict_round_trip(dropped: tuple[str, ...]) -> None:
    concept = Concept.from_dict({key: value for key, value in PLAIN.items() if key not in dropped})
    assert Concept.from_dict(concept.to_dict()) == concept
    assert yaml.safe_load(yaml.safe_dump(concept.to_dict())) == concept.to_dict()


def test_from_dict_leaves_its_argument() -> None:
    before = yaml.safe_dump(PLAIN)
    Concept.from_dict(PLAIN)
    assert yaml.safe_dump(PLAIN) == before


def test_a_concept_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        Concept.from_dict(PLAIN).name = "other"  # pyright: ignore[reportAttributeAccessIssue]


def test_contexts_go_to_target_positives_and_negatives_alike() -> None:
    assert Concept.from_dict(PLAIN).in_contexts() == [
        ("a person", ["a happy person"], ["a sad person", "an angry person"]),
        (
            "a person, with a hat",
            ["a happy person, with a hat"],
            ["a sad person, with a hat", "an angry person, with a hat"],
        ),
    ]
    plain = {key: value for key, value in PLAIN.items() if key != "contexts"}
    assert len(Concept.from_dict(plain).in_contexts()) == 1


CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"positive": ["x"]}, "positive"),
    "missing key": ({"target": ...}, "target"),
    "no positives": ({"positives": []}, "positives"),
    "no negatives": ({"negatives": []}, "negatives"),
    "no direction": ({"negatives": ["a happy person"]}, "negatives"),
    "a file's name that is none": ({"name": "a/b"}, "name"),
    "an empty name": ({"name": ""}, "name"),
    "YAML's yes for a name": ({"name": True}, "name"),
    "one prompt, not a list": ({"positives": "a happy person"}, "positives"),
    "one negative, not a list": ({"negatives": "a sad person"}, "negatives"),
    "one context, not a list": ({"contexts": ", with a hat"}, "contexts"),
    "one preserved prompt, not a list": ({"preserve": "a dog"}, "preserve"),
    "a number among the prompts": ({"positives": ["a happy person", 3]}, "positives"),
    "a measure that is no mapping": ({"measure": "happy"}, "measure"),
    "a measure without prompts": ({"measure": {"attribute": "expression", "value": "happy"}}, "prompts"),
    "an unknown key of a measure": ({"measure": {**PLAIN["measure"], "head": "x"}}, "head"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_errors_name_the_file_and_the_key(case: str, tmp_path: Path) -> None:
    change, key = CHANGES[case]
    file = write(tmp_path, {k: v for k, v in {**PLAIN, **change}.items() if v is not ...})
    with pytest.raises(SliderError) as caught:
        Concept.load(file)
    assert str(file) in str(caught.value)
    assert key in str(caught.value).replace(str(file), "")


@pytest.mark.parametrize("text", ["", "- a\n- list\n", "just words", "name: [unclosed", "\tname: tab"])
def test_a_file_that_is_no_mapping_is_named(text: str, tmp_path: Path) -> None:
    file = write(tmp_path, text)
    with pytest.raises(SliderError) as caught:
        Concept.load(file)
    assert str(file) in str(caught.value)


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "smile.yaml"
    file.write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(SliderError, match=r"smile\.yaml"):
        Concept.load(file)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SliderError, match=r"absent\.yaml.*[Nn]o such file"):
        Concept.load(tmp_path / "absent.yaml")


SPOKEN: dict[str, Any] = {
    "positives": ["You are cheerful."],
    "negatives": ["You are gloomy.", "You are sad."],
    "target": "You are a person.",
    "contexts": ["How was your day?"],
    "preserve": ["What is 2 and 2?"],
    "measure": {"attribute": "sentiment", "prompts": ["What now?"]},
}
BOTH: dict[str, Any] = {**PLAIN, "text": SPOKEN}


class TestWording:
    """A concept in words for models of either kind."""

    def test_each_kind_of_model_has_its_words_and_no_others(self) -> None:
        concept = Concept.from_dict(BOTH)
        assert concept.worded("image") == Concept.from_dict(PLAIN)
        assert concept.worded("text") == Concept.from_dict({"name": "smile", "modality": "text", **SPOKEN})
        assert concept.worded("text").worded("text") == concept.worded("text")

    def test_what_the_section_leaves_out_is_not_taken_from_the_other(self) -> None:
        """A judge of pictures reads no texts."""
        short = {key: SPOKEN[key] for key in ("positives", "negatives")}
        words = Concept.from_dict({**PLAIN, "text": short}).worded("text")
        assert (words.name, words.target) == ("smile", "")
        assert (words.contexts, words.preserve, words.measure) == (None, None, None)

    def test_an_instruction_and_a_message_are_apart(self) -> None:
        words = Concept.from_dict(BOTH).worded("text")
        assert words.in_contexts() == [
            (
                "You are a person.\n\nHow was your day?",
                ["You are cheerful.\n\nHow was your day?"],
                ["You are gloomy.\n\nHow was your day?", "You are sad.\n\nHow was your day?"],
            )
        ]

    def test_words_that_are_not_there(self) -> None:
        with pytest.raises(SliderError, match=r"'smile' has no words for a model of text.*'text:'"):
            Concept.from_dict(PLAIN).worded("text")
        spoken = Concept.from_dict({"name": "mood", "modality": "text", **SPOKEN})
        with pytest.raises(SliderError, match="'mood' has no words for a model of image"):
            spoken.worded("image")

    @pytest.mark.parametrize("plain", [BOTH, {"name": "mood", "modality": "text", **SPOKEN}], ids=["both", "text"])
    def test_dict_round_trip(self, plain: dict[str, Any], tmp_path: Path) -> None:
        concept = Concept.from_dict(plain)
        assert Concept.from_dict(concept.to_dict()) == concept
        assert yaml.safe_load(yaml.safe_dump(concept.to_dict())) == concept.to_dict()
        assert Concept.load(write(tmp_path, plain)) == concept
        if concept.text is not None:
            assert concept.text.measure == Measure("sentiment", ["What now?"])


class TestFiles:
    """Contexts and prompts to preserve, one a line."""

    @pytest.fixture
    def lines(self, tmp_path: Path) -> str:
        """A file of them."""
        (tmp_path / "lines.txt").write_text("# said before\n\n  How was your day?  \nDay #2\n", encoding="utf-8")
        return str(tmp_path / "lines.txt")

    @pytest.mark.parametrize("key", ["contexts", "preserve"])
    def test_a_file_stands_for_a_list(self, key: str, lines: str) -> None:
        concept = Concept.from_dict({**PLAIN, key: lines}, folder=Path())
        assert getattr(concept, key) == ["How was your day?", "Day #2"]

    @pytest.mark.parametrize("key", ["contexts", "preserve"])
    def test_in_the_text_section_too(self, key: str, lines: str) -> None:
        concept = Concept.from_dict({**PLAIN, "text": {**SPOKEN, key: lines}}, folder=Path())
        assert getattr(concept.worded("text"), key) == ["How was your day?", "Day #2"]

    @pytest.mark.parametrize("section", [False, True])
    def test_what_a_slider_says_of_its_concept_needs_no_file(self, section: bool, lines: str) -> None:
        """It is read where the files are not."""
        change = {"contexts": lines, "preserve": lines}
        plain = {**PLAIN, "text": {**SPOKEN, **change}} if section else {**PLAIN, **change}
        concept = Concept.from_dict(plain, folder=Path())
        said = concept.to_dict()
        Path(lines).unlink()
        assert Concept.from_dict(said) == concept

    @pytest.mark.parametrize("key", ["contexts", "preserve"])
    @pytest.mark.parametrize("content", [None, b"", b"# nothing\n\n", b"\xff\xfe\x81"])
    def test_errors_name_the_key_and_the_file(self, key: str, content: bytes | None, tmp_path: Path) -> None:
        if content is not None:
            (tmp_path / "lines.txt").write_bytes(content)
        for plain in ({**PLAIN, key: str(tmp_path / "lines.txt")}, {**BOTH, "text": {**SPOKEN, key: "lines.txt"}}):
            with pytest.raises(SliderError) as caught:
                Concept.load(write(tmp_path, plain))
            assert all(word in str(caught.value) for word in (key, "lines.txt", "smile.yaml"))


class TestPaths:
    """Paths of a concept's file are relative to that file, wherever it is read from."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        """A concept whose prompts lie in a folder beside its own."""
        for folder in ("concepts", "prompts", "elsewhere"):
            (tmp_path / folder).mkdir()
        for name in ("contexts", "kept", "heldout"):
            (tmp_path / "prompts" / f"{name}.txt").write_text(f"{name} 1\n{name} 2\n")
        paths = {"contexts": "../prompts/contexts.txt", "preserve": "../prompts/kept.txt"}
        measure = {"attribute": "sentiment", "prompts": "../prompts/heldout.txt"}
        return write(tmp_path / "concepts", {**PLAIN, **paths, "text": {**SPOKEN, **paths, "measure": measure}})

    @pytest.mark.parametrize("place", [".", "concepts", "elsewhere"])
    def test_from_any_folder(self, place: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path / place)
        for given in (file, Path(os.path.relpath(file))):
            concept = Concept.load(given)
            assert (concept.contexts, concept.preserve) == (["contexts 1", "contexts 2"], ["kept 1", "kept 2"])
            spoken = concept.worded("text")
            assert (spoken.contexts, spoken.preserve) == (concept.contexts, concept.preserve)
            assert spoken.heldout() == ["heldout 1", "heldout 2"]

    def test_what_is_written_names_no_file(self, file: Path) -> None:
        concept = Concept.load(file)
        said = json.dumps(concept.to_dict())
        assert ".txt" not in said
        shutil.rmtree(file.parents[1])
        assert Concept.from_metadata(json.loads(said), "slider") == concept

    @pytest.mark.parametrize("key", ["contexts", "preserve", "measure"])
    def test_relative_to_the_working_directory_is_not_guessed(
        self, key: str, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        path = "prompts/heldout.txt"
        change = {"measure": {**PLAIN["measure"], "prompts": path}} if key == "measure" else {key: path}
        with pytest.raises(SliderError, match=r"smile\.yaml.*relative to that file; write '\.\./prompts/heldout\.txt'"):
            Concept.load(write(file.parent, {**PLAIN, **change}))


class TestStrangers:
    """What a slider's file says of its concept is a stranger's word: it makes nobody read a file."""

    @pytest.fixture
    def secret(self, tmp_path: Path) -> str:
        """A file that is there and could be read."""
        (tmp_path / "secret.txt").write_text("password\n")
        return str(tmp_path / "secret.txt")

    @pytest.mark.parametrize("section", [False, True])
    @pytest.mark.parametrize("key", ["contexts", "preserve"])
    def test_prompts_by_path_are_refused(self, key: str, section: bool, secret: str) -> None:
        plain = {**PLAIN, "text": {**SPOKEN, key: secret}} if section else {**PLAIN, key: secret}
        with pytest.raises(SliderError, match=f"slider 'x'.*'{key}'.*give a list") as caught:
            Concept.from_metadata(plain, "slider 'x'")
        assert "password" not in str(caught.value)
        kept = Concept.from_dict(plain, folder=Path())  # the control: a user's own file may name it
        assert "password" in json.dumps(kept.to_dict())

    @pytest.mark.parametrize("section", [False, True])
    def test_heldout_prompts_by_path_are_not_known(self, section: bool, secret: str) -> None:
        measure = {"attribute": "expression", "prompts": secret}
        plain = {**PLAIN, "text": {**SPOKEN, "measure": measure}} if section else {**PLAIN, "measure": measure}
        concept = Concept.from_metadata(plain, "slider 'x'").worded("text" if section else "image")
        with pytest.raises(SliderError, match=r"'smile', of an earlier version.*--concept"):
            concept.heldout()
        assert Concept.from_metadata(concept.to_dict(), "again") == concept

    @pytest.mark.parametrize("plain", [None, 3, "words", [], {"text": 3}, {"measure": []}, {"name": {}}])
    def test_anything_else(self, plain: Any) -> None:
        with pytest.raises(SliderError, match="slider 'x'"):
            Concept.from_metadata(plain, "slider 'x'")


SLIDERS = """\
- target: "person"  # what word for erasing the positive concept from
  positive: "person, very old"
  unconditional: "person, very young"
  neutral: "person"
  action: "enhance"
  guidance_scale: 4
  resolution: 512
  dynamic_resolution: false
  batch_size: 1
- target: "male person"
  positive: "male person, very old"
  unconditional: "male person, very young"
  neutral: "male person"
  action: "enhance"
  guidance_scale: 4
"""
LECO = """\
- target: "van gogh"
  positive: "van gogh"
  unconditional: ""
  neutral: ""
  action: "erase"
  guidance_scale: 1.0
  resolution: 512
"""
AI_TOOLKIT = """\
job: extension
config:
  name: detail_slider
  process:
    - type: "concept_slider"
      slider:
        targets:
          - target_class: ""
            positive: "high detail"
            negative: "low detail"
"""
PEERS = {
    "sliders": (SLIDERS, {"target": "person", "positives": ["person, very old"], "negatives": ["person, very young"]}),
    "LECO": (LECO, {"target": "van gogh", "positives": [""], "negatives": ["van gogh"]}),
    "ai-toolkit": (AI_TOOLKIT, {"target": "", "positives": ["high detail"], "negatives": ["low detail"]}),
}


@pytest.mark.parametrize("peer", PEERS)
def test_a_file_of_another_program_is_explained_in_one_line(peer: str, tmp_path: Path) -> None:
    """What it suggests is a concept."""
    text, words = PEERS[peer]
    with pytest.raises(SliderError) as caught:
        Concept.load(write(tmp_path, text))
    said = str(caught.value)
    assert peer in said
    assert "\n" not in said
    suggested = yaml.safe_load(said[said.index("{") : said.index("}") + 1])
    assert Concept.from_dict(suggested) == Concept(name="NAME", **words)


def test_a_training_configuration_of_another_program_is_explained(tmp_path: Path) -> None:
    file = write(tmp_path, {"prompts_file": "prompts.yaml", "network": {"rank": 4}})
    with pytest.raises(SliderError, match=r"LECO.*prompts_file 'prompts\.yaml'"):
        Concept.load(file)


@pytest.mark.parametrize("plain", [[], [1], ["positive"], [{"name": "x"}], {"positive": "x"}, {"config": []}])
def test_what_is_nobodys_is_not_explained(plain: Any, tmp_path: Path) -> None:
    with pytest.raises(SliderError) as caught:
        Concept.load(write(tmp_path, plain))
    assert "of this package" not in str(caught.value)


SPOKEN_CHANGES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no mapping": ({"text": "You are cheerful."}, ["text", "mapping"]),
    "an unknown key": ({"text": {**SPOKEN, "name": "x"}}, ["text", "name"]),
    "a missing key": ({"text": {"positives": ["x"]}}, ["text", "negatives"]),
    "no positives": ({"text": {**SPOKEN, "positives": []}}, ["text", "positives"]),
    "one positive, not a list": ({"text": {**SPOKEN, "positives": "x"}}, ["text", "positives"]),
    "no direction": ({"text": {**SPOKEN, "positives": SPOKEN["negatives"]}}, ["text", "negatives"]),
    "a target that is no text": ({"text": {**SPOKEN, "target": 3}}, ["text", "target"]),
    "a measure without prompts": ({"text": {**SPOKEN, "measure": {"attribute": "x"}}}, ["text", "measure", "prompts"]),
    "a measure's number": (
        {"text": {**SPOKEN, "measure": {"attribute": 3, "prompts": "x"}}},
        ["text", "measure", "attribute"],
    ),
    "another modality": ({"modality": "sound"}, ["modality", "sound"]),
    "text in text": ({"modality": "text"}, ["modality", "text"]),
}


@pytest.mark.parametrize("case", SPOKEN_CHANGES)
def test_errors_name_the_file_the_section_and_the_key(case: str, tmp_path: Path) -> None:
    change, keys = SPOKEN_CHANGES[case]
    file = write(tmp_path, {**BOTH, **change})
    with pytest.raises(SliderError) as caught:
        Concept.load(file)
    assert str(file) in str(caught.value)
    assert all(key in str(caught.value).replace(str(file), "").replace("not text", "") for key in keys)
