"""Which base a slider was made for: by the components that it is on, and by their content alone."""

import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sliders.algebra.edit import Translation
from sliders.algebra.lowrank import LowRank
from sliders.algebra.slider import Slider
from sliders.backbones import fingerprint
from sliders.backbones.fingerprint import hash_files, hash_tensors
from sliders.backbones.language.model import CausalLMBackbone
from sliders.backbones.origin import Origin
from sliders.backbones.placement import Precision
from sliders.backbones.unet import UNetBackbone
from sliders.errors import SliderError
from sliders.formats.metadata import check_base, check_one_base, describe_composed, differs
from sliders.runtime.adapter import Adapter
from sliders.runtime.baking import baked
from sliders.runtime.layers import weight_shape
from tests import tiny, tiny_lm


def slider(name: str = "happy", **metadata: str) -> Slider:
    said = {f"sliders.{key}": value for key, value in metadata.items()}
    return Slider(name, Translation({"unet.conv_in": LowRank(torch.ones(2, 1), torch.ones(1, 2), (2, 2))}), said)


def slider_on(model: UNetBackbone) -> Translation:
    """A change of its first layer."""
    shape = weight_shape(model, "unet.conv_in")
    width = torch.Size(shape[1:]).numel()
    return Translation({"unet.conv_in": LowRank(torch.ones(shape[0], 1), torch.ones(1, width), shape)})


@pytest.fixture
def model() -> UNetBackbone:
    made = UNetBackbone("tiny")
    made.use(tiny.stable_diffusion())
    return made


class TestContent:
    """Of tensors: neither names nor order nor an exact change of precision matter, and every number does."""

    def test_order_and_precision_are_of_no_matter(self) -> None:
        one, other = torch.randn(3, 4).half(), torch.randn(5).bfloat16()
        assert hash_tensors([one, other]) == hash_tensors([other.float(), one.double()])

    @pytest.mark.parametrize("place", [0, 7, 4095])
    def test_every_number_matters(self, place: int) -> None:
        values = torch.randn(4096).half()
        before = hash_tensors([values])
        values[place] += 1
        assert hash_tensors([values]) != before
        assert hash_tensors([values.view(64, 64)]) != hash_tensors([values])

    def test_numbers_that_half_precision_cannot_hold_are_not_rounded(self) -> None:
        values = torch.randn(4096).half().float()
        before = hash_tensors([values])
        values[4095] = torch.nextafter(values[4095], torch.tensor(torch.inf))
        assert hash_tensors([values]) != before

    def test_of_files_it_is_computed_once(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        file = tmp_path / "weights.safetensors"
        save_file({"a": torch.randn(8)}, file)
        first = hash_files([file])
        assert first == hash_tensors(load_file(file).values())
        kept = fingerprint._stored
        monkeypatch.setattr(fingerprint, "_stored", lambda files: pytest.fail("it is read again"))
        assert hash_files([file]) == first
        monkeypatch.setattr(fingerprint, "_stored", kept)
        save_file({"a": torch.randn(8)}, file)
        os.utime(file, ns=(time.time_ns(), time.time_ns() + 1))
        assert hash_files([file]) != first

    def test_a_cache_that_cannot_be_written_is_none(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "cache").write_text("a file")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        save_file({"a": torch.randn(8)}, tmp_path / "weights.safetensors")
        assert hash_files([tmp_path / "weights.safetensors"])


class TestComponents:
    """Only those that the slider is on."""

    def test_nothing_is_hashed_until_somebody_asks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[int] = []
        monkeypatch.setattr("sliders.backbones.origin.hash_tensors", lambda tensors: asked.append(1) or "x" * 32)
        made = UNetBackbone("tiny")
        made.use(tiny.stable_diffusion())
        assert asked == []
        assert made.fingerprint(["unet"]) == "unet=" + "x" * 32
        made.fingerprint(["unet"])
        assert asked == [1]

    def test_another_autoencoder_is_the_same_base_to_a_slider_on_the_unet(self, model: UNetBackbone) -> None:
        pipeline = tiny.stable_diffusion()
        next(iter(pipeline.vae.parameters())).data += 1
        exchanged = UNetBackbone("exchanged")
        exchanged.use(pipeline)
        made = slider(base_fingerprint=model.fingerprint(["unet"]), base_model="tiny")
        check_base(made, exchanged)
        assert exchanged.fingerprint() != model.fingerprint()
        whole = slider(base_fingerprint=model.fingerprint(), base_model="tiny")
        with pytest.raises(SliderError, match=r"vae of exchanged .*--any_base"):
            check_base(whole, exchanged)
        next(iter(pipeline.unet.parameters())).data += 1
        edited = UNetBackbone("edited")
        edited.use(pipeline)
        with pytest.raises(SliderError, match="'happy' was made for tiny, and unet of edited"):
            check_base(made, edited)
        check_base(slider(), edited)  # it does not say

    def test_a_component_that_is_not_there(self, model: UNetBackbone) -> None:
        assert differs({"sliders.base_fingerprint": "text_encoder_2=0"}, model) == "text_encoder_2"

    def test_sliders_of_earlier_versions_are_still_known(self, model: UNetBackbone) -> None:
        check_base(slider(base_fingerprint=model.old_fingerprint()), model)
        with pytest.raises(SliderError, match="any_base"):
            check_base(slider(base_fingerprint="0" * 32), model)

    def test_they_are_compared_with_what_is_stored_in_whatever_precision_it_is_read(self, tmp_path: Path) -> None:
        tiny.save(tiny.stable_diffusion(), tmp_path)
        full, low = UNetBackbone(str(tmp_path)), UNetBackbone(str(tmp_path), dtype="bfloat16")
        full.load()
        low.load()
        in_memory = UNetBackbone("memory")
        in_memory.use(tiny.stable_diffusion())
        assert low.old_fingerprint() == full.old_fingerprint() == in_memory.old_fingerprint()
        low.origin = Origin()  # the control: what is in memory was rounded
        assert low.old_fingerprint() != full.old_fingerprint()

    def test_files_that_have_changed_since_are_not_the_model(self, tmp_path: Path) -> None:
        tiny.save(tiny.stable_diffusion(), tmp_path)
        model = UNetBackbone(str(tmp_path))
        model.load()
        file = next((tmp_path / "unet").glob("*.safetensors"))
        state = load_file(file)
        save_file({key: tensor + 1 for key, tensor in state.items()}, file)
        fresh = UNetBackbone("fresh")
        fresh.use(tiny.stable_diffusion())
        assert model.fingerprint() == fresh.fingerprint()
        shutil.rmtree(tmp_path)
        model.origin._hashes.clear()
        assert model.fingerprint() == fresh.fingerprint()

    def test_a_model_that_is_given_after_another_was_read_is_the_one_that_counts(self, tmp_path: Path) -> None:
        tiny.save(tiny.stable_diffusion(), tmp_path / "base")
        model = UNetBackbone(str(tmp_path / "base"))
        model.load()
        before, other = model.fingerprint(), tiny.stable_diffusion()
        other.unet.conv_in.weight.data += 1
        model.use(other)
        assert model.fingerprint() != before
        model.export(tmp_path / "new")
        written = load_file(next((tmp_path / "new" / "unet").glob("*.safetensors")))
        assert torch.equal(written["conv_in.weight"], other.unet.conv_in.weight)

    def test_what_is_on_the_model_now_is_not_its_fingerprint(self, model: UNetBackbone) -> None:
        fresh = UNetBackbone("fresh")
        fresh.use(tiny.stable_diffusion())
        with Adapter(model, model.select_targets(["xattn"]), 2, 2.0):
            assert model.fingerprint() == fresh.fingerprint()
            assert model.old_fingerprint() == fresh.old_fingerprint()
        model.origin = Origin()
        with baked(model, slider_on(model)):
            assert model.fingerprint() == fresh.fingerprint()
            assert model.old_fingerprint() == fresh.old_fingerprint()
        model.origin = Origin()
        model.unet.conv_in.weight.data += 1
        assert model.fingerprint() != fresh.fingerprint()


class TestComposed:
    """What is made of several."""

    def test_components_are_joined(self) -> None:
        parts = [slider("a", base_fingerprint="unet=1", base_model="x"), slider("b", base_fingerprint="text_encoder=2")]
        check_one_base(parts)
        said = describe_composed("both", {"how": "sum"}, parts)
        assert said["sliders.base_fingerprint"] == "text_encoder=2,unet=1"

    def test_of_two_bases(self) -> None:
        parts = [slider("a", base_fingerprint="unet=1"), slider("b", base_fingerprint="text_encoder=2,unet=3")]
        with pytest.raises(SliderError, match="different bases"):
            check_one_base(parts)
        assert "sliders.base_fingerprint" not in describe_composed("both", {"how": "sum"}, parts)

    def test_old_and_new_are_compared_by_the_bases_name(self) -> None:
        old = slider("a", base_fingerprint="0" * 32, base_model="x")
        check_one_base([old, slider("b", base_fingerprint="unet=1", base_model="x")])
        with pytest.raises(SliderError, match="different bases"):
            check_one_base([old, slider("b", base_fingerprint="unet=1", base_model="y")])


@pytest.mark.parametrize("kind", ["sd", "llama", "gpt2"])
def test_files_and_memory_agree(kind: str, tmp_path: Path) -> None:
    """Whatever names a library gives to what it has read, and in whatever precision that is."""

    def read(dtype: Precision = "auto") -> UNetBackbone | CausalLMBackbone:
        made = (UNetBackbone if kind == "sd" else CausalLMBackbone)(str(tmp_path), dtype=dtype)
        made.load()
        return made

    made = tiny.stable_diffusion() if kind == "sd" else tiny_lm.language_model(kind)
    tiny.save(made.to(torch.float16), tmp_path)
    stored, memory = read(), read()
    memory.origin = Origin()
    assert stored.fingerprint() == memory.fingerprint()
    assert read("bfloat16").fingerprint() == stored.fingerprint()
