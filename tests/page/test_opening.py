"""What a page opens with: what is shipped, what was trained here, what is named."""

from pathlib import Path

import pytest

from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.errors import SliderError
from sliders.formats import diffusers, peft
from sliders.formats import edit as edit_file
from sliders.page import library
from sliders.page.opening import open_session
from sliders.page.session import Session
from tests.page.conftest import HAPPY, MOOD, UNHAPPY, described, edited, steered


def opened(painter: UNetBackbone, speaker: CausalLMBackbone, *sliders: Path, megabytes: float = 1) -> Session:
    """In the folder that is the working directory."""
    return open_session(painter, speaker, list(sliders) or None, Path("out"), None, megabytes)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, and one that stands for what is shipped."""
    monkeypatch.chdir(tmp_path)
    for kind in library.SHIPPED:
        monkeypatch.setitem(library.SHIPPED, kind, tmp_path / "shipped" / kind)
    return tmp_path


def test_without_any_slider_the_page_opens_all_the_same(painter: UNetBackbone, speaker: CausalLMBackbone) -> None:
    session = opened(painter, speaker)
    assert session.images.opening == session.texts.opening == []


def test_what_was_trained_here_goes_before_what_is_shipped(painter: UNetBackbone, speaker: CausalLMBackbone) -> None:
    shipped, trained = described(HAPPY, painter, "xattn"), described(HAPPY, painter, "selfattn")
    diffusers.save(shipped, library.SHIPPED["image"] / "happy.safetensors")
    diffusers.save(described(HAPPY, painter, "xattn", "other"), library.SHIPPED["image"] / "other.safetensors")
    assert set(opened(painter, speaker).images["happy"].dial.at(1).modules) == set(shipped.update)
    diffusers.save(trained, Path("runs/happy/happy.safetensors"))
    diffusers.save(trained, Path("runs/happy/checkpoints.safetensors"))  # not the run's slider
    session = opened(painter, speaker)
    assert session.images.opening == ["happy", "other"]
    assert set(session.images["happy"].dial.at(1).modules) == set(trained.update)


def test_sliders_of_language_are_folders(painter: UNetBackbone, speaker: CausalLMBackbone) -> None:
    peft.save(described(MOOD, speaker, "attention"), Path("runs/mood/mood"), "base")
    session = opened(painter, speaker)
    assert (session.images.opening, session.texts.opening) == ([], ["mood"])
    assert session.texts["mood"].modality == "text"


def test_one_for_another_base_is_left_out_where_it_lies_and_refused_where_it_is_named(
    painter: UNetBackbone, speaker: CausalLMBackbone, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = described(HAPPY, painter, "xattn")
    foreign = {**theirs.metadata, "sliders.base_fingerprint": "0" * 32}
    file = Path("runs/happy/happy.safetensors")
    diffusers.save(type(theirs)(theirs.name, theirs.update, foreign), file)
    assert opened(painter, speaker).images.opening == []
    assert "left out runs/happy/happy.safetensors" in capsys.readouterr().out
    with pytest.raises(SliderError, match="was made for"):
        opened(painter, speaker, file)


def test_an_edit_that_is_named_is_a_dial_of_its_model(painter: UNetBackbone, speaker: CausalLMBackbone) -> None:
    files = []
    for made in (edited(UNHAPPY, painter, "unhappy"), steered(speaker)):
        files.append(Path(f"{made.name}.safetensors"))
        edit_file.save(made.name, made.edit, files[-1], dict(made.metadata))
    session = opened(painter, speaker, *files)
    assert (session.images.opening, session.texts.opening) == (["unhappy"], ["steer"])
    foreign = {**edited(UNHAPPY, painter, "unhappy").metadata, "sliders.base_fingerprint": "0" * 32}
    edit_file.save("unhappy", edited(UNHAPPY, painter, "unhappy").edit, files[0], foreign)
    with pytest.raises(SliderError, match="was made for"):
        opened(painter, speaker, *files)


def test_what_is_named_must_be_there(painter: UNetBackbone, speaker: CausalLMBackbone) -> None:
    with pytest.raises(SliderError, match="no slider file"):
        opened(painter, speaker, Path("nowhere.safetensors"))
    with pytest.raises(SliderError, match="--upload_mb"):
        opened(painter, speaker, megabytes=0)
