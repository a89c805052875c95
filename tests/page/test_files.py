"""Files of strangers, and files for them."""

import json
import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sliders import formats
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.errors import SliderError
from sliders.formats import diffusers, peft
from sliders.page.library import Library
from sliders.page.session import Session
from sliders.runtime.attach import attach
from tests.page.conftest import CANVAS, HAPPY, SEEN, answers, apart, described, plain


@pytest.fixture
def theirs(session: Session, painter: UNetBackbone, tmp_path: Path) -> Path:
    """A good file."""
    file = tmp_path / "up" / "their slider.safetensors"
    diffusers.save(described(HAPPY, painter, "xattn", "theirs"), file)
    return file


def changed(file: Path, metadata: dict[str, str] | None = None, scale: float = 1.0, rename: str = "") -> Path:
    """A copy with something else in it."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        said = {**(opened.metadata() or {}), **(metadata or {})}
    state = {rename + key if rename else key: value * scale for key, value in load_file(file).items()}
    save_file(state, file.with_name("changed.safetensors"), said)
    return file.with_name("changed.safetensors")


def test_an_uploaded_slider_is_a_dial_like_any_other(session: Session, theirs: Path) -> None:
    entry = session.upload(theirs)
    assert re.fullmatch(r"theirs-[0-9a-f]{6}", entry.key)
    assert entry.ends == ("sad, dog", "happy")
    own = session.draw("a", CANVAS, {"happy": 1.0}).turned
    assert apart(session.draw("a", CANVAS, {entry.key: 1.0}).turned, own) < 1e-6
    assert session.images.opening == ["happy", "other", "words"]  # other users do not see it
    assert session.upload(theirs).key == entry.key


def pickled(file: Path) -> Path:
    made = file.with_name("model.pt")
    made.write_bytes(pickle.dumps({"a": 1}))
    return made


def disguised(file: Path) -> Path:
    made = file.with_name("model.safetensors")
    made.write_bytes(pickle.dumps({"a": list(range(100))}))
    return made


def cut(file: Path) -> Path:
    made = file.with_name("cut.safetensors")
    made.write_bytes(file.read_bytes()[:-100])
    return made


def large(file: Path) -> Path:
    made = file.with_name("large.safetensors")
    made.write_bytes(bytes(2**21))
    return made


def adapter(file: Path) -> Path:
    made = file.with_name("adapter_model.safetensors")
    save_file({"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(2, 16)}, made)
    return made


FOREIGN = {"sliders.base_fingerprint": "0" * 32, "sliders.base_model": "their/model\n<b>"}


@pytest.mark.parametrize(
    ("break_it", "why"),
    [
        (pickled, r"model\.pt is no \.safetensors file.*can run programs"),
        (disguised, r"model\.safetensors cannot be read"),
        (cut, r"cut\.safetensors cannot be read: it is cut off"),
        (large, r"2 MB; at most 1 MB"),
        (adapter, "strength stands in a second file"),
        (lambda file: changed(file, FOREIGN), r"made for another model \(their/model <b>\)"),
        (lambda file: changed(file, rename="unet."), "does not fit this page's model.*which this model does not have"),
        (lambda file: changed(file, scale=float("nan")), "infinite or no numbers"),
        (lambda file: changed(file, {"lora_adapter_metadata": "{"}), "lora_adapter_metadata is not JSON"),
    ],
)
def test_what_is_no_slider_of_this_model_is_refused_in_words(
    session: Session, theirs: Path, break_it: Callable[[Path], Path], why: str
) -> None:
    file = break_it(theirs)
    with pytest.raises(SliderError, match=why) as refused:
        session.upload(file)
    assert str(theirs.parent) not in str(refused.value)  # nothing of this machine's paths
    assert not session.painting.lock.locked()


def test_a_concept_in_an_uploaded_file_opens_no_other_file(
    session: Session, theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("password\n")
    said = {**HAPPY.to_dict(), "contexts": str(secret), "preserve": str(secret)}
    said["measure"] = {"attribute": "a", "value": "b", "prompts": str(secret)}
    opened: list[Path] = []
    read_text = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, *a, **k: opened.append(path) or read_text(path, *a, **k))
    entry = session.upload(changed(theirs, {"sliders.concept": json.dumps(said), "sliders.name": "../../x<script>"}))
    assert re.fullmatch(r"x-script-[0-9a-f]{6}", entry.key)
    assert secret not in opened
    assert "secret" not in json.dumps(dict(entry.sides[0].metadata))


def test_a_language_slider_comes_back_as_it_went(session: Session, speaker: CausalLMBackbone, tmp_path: Path) -> None:
    packed = session.download("mood")
    with zipfile.ZipFile(packed) as archive:
        archive.extractall(tmp_path / "peft")
    entry = session.upload(tmp_path / "peft" / peft.WEIGHTS)
    assert entry.modality == "text"
    assert answers(session, "a", {entry.key: 3.0}) == answers(session, "a", {"mood": 3.0})
    lm = AutoModelForCausalLM.from_pretrained(speaker.base_model)
    adapted = PeftModel.from_pretrained(lm, str(tmp_path / "peft"))
    ids = speaker.tokenizer("how was your day", return_tensors="pt").input_ids
    with attach(speaker, [session.texts["mood"].dial], {"mood": 1.0}), torch.no_grad():
        torch.testing.assert_close(adapted(ids).logits, speaker.lm(ids).logits, atol=1e-4, rtol=1e-4)


def test_a_composition_is_one_file_that_plain_diffusers_loads(session: Session, painter: UNetBackbone) -> None:
    positions = {"happy": 1.2, "other": -0.7, "words": 0.4}
    hinge = session.make_hinge("happy", "other")
    positions[hinge.key] = -0.5
    file = session.composition(positions)
    assert file.suffix == ".safetensors"
    assert session.outputs.holds(file)
    pipeline = StableDiffusionPipeline.from_pretrained(painter.base_model, safety_checker=None)
    pipeline.load_lora_weights(str(file))
    again = UNetBackbone(painter.base_model)
    again.use(pipeline)
    wanted = session.draw("a", CANVAS, positions)
    assert apart(plain(again), wanted.turned) < 1e-4
    assert apart(wanted.turned, wanted.base) > SEEN
    said = json.loads(formats.load(file).metadata["sliders.composed"])
    assert {part["name"]: part["dial"] for part in said["parts"]} == positions
    with pytest.raises(SliderError, match="nothing to download"):
        session.composition({"happy": 0.0})
    with pytest.raises(SliderError, match="change different models"):
        session.composition({"happy": 1.0, "mood": 1.0})


def test_a_hinge_is_downloaded_as_a_folder_of_two(session: Session, tmp_path: Path) -> None:
    made = session.make_hinge("happy", "other")
    with zipfile.ZipFile(session.download(made.key)) as archive:
        archive.extractall(tmp_path / "hinge")
    loaded = formats.load_dial(tmp_path / "hinge")
    assert loaded.name == made.key


def test_old_files_make_room_and_names_cannot_leave_the_shelf(session: Session) -> None:
    session.outputs._kept = 3
    files = [session.download("happy") for _ in range(5)]
    assert [file.is_file() for file in files] == [False, False, True, True, True]
    assert session.outputs.holds(session.outputs.place("../../../etc/x y"))


def test_uploads_are_limited_in_number(session: Session, painter: UNetBackbone) -> None:
    library = Library([described(HAPPY, painter, "xattn")], kept=2)
    keys = [library.add(described(HAPPY, painter, "xattn", f"s{k}"), bytes([k])).key for k in range(3)]
    assert [entry.key for entry in library.entries(keys)] == keys[1:]
    with pytest.raises(SliderError, match="no slider"):
        library[keys[0]]
