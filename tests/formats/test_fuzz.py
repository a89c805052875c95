"""Whatever a stranger's file says of itself, it is read, or refused in one line."""

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from sliders import formats
from sliders.algebra.edit import Affine
from sliders.algebra.element import Element
from sliders.algebra.lowrank import LowRank
from sliders.errors import SliderError
from sliders.formats import diffusers, edit, metadata, peft, tensors
from sliders.page.library import describe
from tests.factory import lowrank
from tests.formats.test_diffusers import TO_K, plain

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("/etc/passwd"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
SAID = st.text(max_size=12) | JSON.map(json.dumps) | st.sampled_from(["[" * 3000, "NaN", "-1", "1e999", "[0, 0]"])
KEYS = st.sampled_from(
    ["concept", "eta", "alpha", "rank", "dial_range", "effect", "name", "base_model", "edit", "shapes", "modality"]
).map("sliders.{}".format) | st.sampled_from(["lora_adapter_metadata", "modelspec.description"])
CONFIG = st.sampled_from(
    ["r", "lora_alpha", "alpha_pattern", "use_rslora", "bias", "use_dora", "init_lora_weights", "peft_type"]
)
FEW = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def read_all(path: Path) -> bool:
    """Whether all that is read of a slider could be; anything but a `SliderError` goes through."""
    try:
        dial = formats.load_dial(path)
        formats.modality_of(path)
        describe("x", dial)
        metadata.number_of(dial, "sliders.eta", 1.0)
        metadata.concept_of(dial)
    except SliderError as error:
        said = str(error)
    else:
        return True
    assert "\n" not in said
    return False


CONCEPT = {"name": "smile", "target": "a", "positives": ["b"], "negatives": ["c"]}


@given(said=st.dictionaries(KEYS, SAID, max_size=4))
@FEW
def test_metadata_of_pictures(said: dict[str, str], tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    diffusers.save(plain(), file)
    known, state = tensors.read(file)
    save_file(state, file, {**known, "sliders.concept": json.dumps(CONCEPT), **said})
    read_all(file)


def test_the_control(tmp_path: Path) -> None:
    """With nothing changed everything is read."""
    file = tmp_path / "s.safetensors"
    diffusers.save(plain(), file)
    known, state = tensors.read(file)
    save_file(state, file, {**known, "sliders.concept": json.dumps(CONCEPT)})
    assert read_all(file)


@given(config=st.dictionaries(CONFIG.map("unet.{}".format) | CONFIG | st.text(max_size=5), JSON, max_size=4))
@FEW
def test_the_client_s_own_metadata(config: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    diffusers.save(plain(), file)
    known, state = tensors.read(file)
    save_file(state, file, {**known, "lora_adapter_metadata": json.dumps(config)})
    read_all(file)


@given(config=JSON | st.dictionaries(CONFIG, JSON, max_size=4).map(lambda said: {"peft_type": "LORA", **said}))
@FEW
def test_configurations_of_peft(config: Any, tmp_path: Path) -> None:
    update = lowrank((4, 4), 2, dtype=torch.float32)
    (tmp_path / "s").mkdir(exist_ok=True)
    state = {"base_model.model.x.lora_A.weight": update.A, "base_model.model.x.lora_B.weight": update.B}
    save_file(state, tmp_path / "s" / peft.WEIGHTS)
    (tmp_path / "s" / peft.CONFIG).write_text(json.dumps(config))
    read_all(tmp_path / "s")
    with contextlib.suppress(SliderError):
        peft.base_of(tmp_path / "s")


@given(concept=JSON | st.dictionaries(st.sampled_from([*CONCEPT, "contexts", "measure", "text"]), JSON, max_size=5))
@FEW
def test_concepts(concept: Any, tmp_path: Path) -> None:
    file = tmp_path / "s.safetensors"
    diffusers.save(plain(), file)
    known, state = tensors.read(file)
    said = {**CONCEPT, **concept} if isinstance(concept, dict) else concept
    save_file(state, file, {**known, "sliders.concept": json.dumps(said)})
    read_all(file)


@given(shapes=JSON.map(json.dumps) | st.lists(st.integers(), max_size=5).map(lambda shape: json.dumps({TO_K: shape})))
@FEW
def test_edits(shapes: str, tmp_path: Path) -> None:
    file = tmp_path / "e.safetensors"
    element = Element((4, 4), LowRank.zero((4, 4)), lowrank((4, 4), 1, dtype=torch.float32), LowRank.zero((4, 4)))
    edit.save("e", Affine({TO_K: element}), file, {})
    known, state = tensors.read(file)
    save_file(state, file, {**known, "sliders.shapes": shapes})
    read_all(file)


@pytest.mark.parametrize("eta", ["abc", "", "nan", "inf", "[]"])
def test_a_number_that_is_none(eta: str) -> None:

    slider = replace(plain(), metadata={"sliders.eta": eta})
    with pytest.raises(SliderError, match=r"'s': sliders\.eta.*no number"):
        metadata.number_of(slider, "sliders.eta", 1.0)
    assert metadata.number_of(plain(), "sliders.eta", 1.5) == 1.5
    assert metadata.number_of(replace(slider, metadata={"sliders.eta": "2"}), "sliders.eta") == 2.0
