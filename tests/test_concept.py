"""A concept's file, and what its errors say."""

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
    "measure": {"attribute": "expression", "value": "happy", "prompts": "data/heldout.txt"},
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
    assert concept.measure == Measure("expression", Path("data/heldout.txt"), "happy")


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
