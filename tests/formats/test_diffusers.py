"""Slider files against the program that they are for: diffusers itself, on tiny pipelines of the true shape."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.testing import assert_close

from sliders.algebra.edit import Translation
from sliders.algebra.slider import Slider
from sliders.backbones.sdxl import SDXLBackbone
from sliders.backbones.unet import UNetBackbone
from sliders.concept import Concept
from sliders.errors import SliderError
from sliders.evaluation.pictures.sampling import Sampling, Scene, sample
from sliders.formats import diffusers as slider_file
from sliders.formats import tensors
from sliders.formats.metadata import concept_of, describe
from sliders.runtime.attach import attach
from sliders.runtime.layers import editable_modules
from tests import tiny
from tests.factory import lowrank, slider

Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline
SCENES = [Scene("a happy person", 3), Scene("a dog with hat", 4)]
HOW = Sampling(steps=2, guidance=3.0, batch=2)
TINY = 1e-4
"""What float32 may do to a picture."""
SEEN = 1e-2
"""A change of a picture that no rounding makes."""

TO_K = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
TO_Q = "unet.up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"
CONV = "unet.down_blocks.0.resnets.0.conv1"


def plain(name: str = "s") -> Slider:
    """Three layers of the tiny UNet, one of them a convolution, at three ranks."""
    shapes = {TO_K: ((16, 16), 1), TO_Q: ((16, 16), 3), CONV: ((8, 8, 3, 3), 2)}
    return Slider(
        name,
        Translation({m: lowrank(shape, rank, i, torch.float32) for i, (m, (shape, rank)) in enumerate(shapes.items())}),
        {"sliders.base_fingerprint": "abc", "sliders.base_model": "the/base", "note": "äöü\n"},
    )


def same(one: Translation, other: Translation) -> None:
    """The same layers and, apart from factors, the same updates."""
    assert set(one) == set(other)
    for module, update in one.items():
        assert other[module].shape == update.shape
        assert_close(other[module].dense(), update.dense())


def write(
    file: Path,
    update: Translation,
    metadata: Mapping[str, str] | None = None,
    extra: Mapping[str, Tensor] | None = None,
) -> Path:
    """A LoRA as another program may write it, the factors just as they are."""
    state: dict[str, Tensor] = dict(extra or {})
    for name, part in update.items():
        state[f"{name}.lora_A.weight"] = part.A.reshape(-1, *part.shape[1:]).contiguous()
        state[f"{name}.lora_B.weight"] = part.B.reshape(*part.B.shape, *[1] * (len(part.shape) - 2)).contiguous()
    save_file(state, file, dict(metadata or {}))
    return file


class TestFile:
    def test_round_trip(self, tmp_path: Path) -> None:
        written = plain()
        slider_file.save(written, tmp_path / "new" / "folder" / "s.safetensors")
        read = slider_file.load(tmp_path / "new" / "folder" / "s.safetensors")
        same(read.update, written.update)
        assert {name: part.rank for name, part in read.update.items()} == {TO_K: 1, TO_Q: 3, CONV: 2}
        assert read.name == "s"
        assert dict(written.metadata).items() <= dict(read.metadata).items()

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_precision_is_read_as_single(self, dtype: torch.dtype, tmp_path: Path) -> None:
        """Products of the factors are then those of what is stored."""
        stored = Slider("s", Translation({name: update.to(dtype) for name, update in plain().update.items()}))
        slider_file.save(stored, tmp_path / "s.safetensors")
        for name, update in slider_file.load(tmp_path / "s.safetensors").update.items():
            assert update.B.dtype == update.A.dtype == torch.float32
            torch.testing.assert_close(update.dense(), stored.update[name].to(torch.float32).dense())

    def test_twice_round_is_once_round(self, tmp_path: Path) -> None:
        slider_file.save(plain(), tmp_path / "a.safetensors")
        once = slider_file.load(tmp_path / "a.safetensors")
        slider_file.save(once, tmp_path / "b.safetensors")
        twice = slider_file.load(tmp_path / "b.safetensors")
        same(twice.update, once.update)
        assert {**twice.metadata, "lora_adapter_metadata": ""} == {**once.metadata, "lora_adapter_metadata": ""}

    def test_the_name_is_the_sliders_or_the_files(self, tmp_path: Path) -> None:
        slider_file.save(plain("smile"), tmp_path / "other.safetensors")
        assert slider_file.load(tmp_path / "other.safetensors").name == "smile"
        assert slider_file.load(write(tmp_path / "theirs.safetensors", plain().update)).name == "theirs"

    def test_a_negated_slider_goes_the_other_way_in_the_file(self, tmp_path: Path) -> None:
        slider_file.save(-plain(), tmp_path / "s.safetensors")
        same(slider_file.load(tmp_path / "s.safetensors").update, -plain().update)

    def test_layers_that_share_factors(self, tmp_path: Path) -> None:
        """Tensors of one storage are no reason to fail."""
        part = lowrank((16, 16), 2, dtype=torch.float32)
        shared = Slider("s", Translation({TO_K: part, TO_Q: part}))
        slider_file.save(shared, tmp_path / "s.safetensors")
        same(slider_file.load(tmp_path / "s.safetensors").update, shared.update)

    def test_no_alpha_is_rank(self, tmp_path: Path) -> None:
        same(slider_file.load(write(tmp_path / "s.safetensors", plain().update)).update, plain().update)

    def test_alpha_keys_are_folded_once(self, tmp_path: Path) -> None:
        alphas = {f"{TO_K}.alpha": torch.tensor(4.0), f"{CONV}.alpha": torch.tensor(0.5)}
        read = slider_file.load(write(tmp_path / "s.safetensors", plain().update, extra=alphas))
        expected = plain().update
        scales = {TO_K: 4.0 / 1, TO_Q: 1.0, CONV: 0.5 / 2}
        same(read.update, Translation({name: part * scales[name] for name, part in expected.items()}))
        slider_file.save(read, tmp_path / "again.safetensors")
        same(slider_file.load(tmp_path / "again.safetensors").update, read.update)
        with safe_open(tmp_path / "again.safetensors", "pt") as f:
            assert not [key for key in f.keys() if key.endswith("alpha")]  # noqa: SIM118

    def test_what_is_written_has_alpha_rank(self, tmp_path: Path) -> None:
        """Also where it was read with another alpha, whose metadata must not stay."""
        config = {"unet.r": 1, "unet.lora_alpha": 7}
        file = write(tmp_path / "a.safetensors", plain().update, {"lora_adapter_metadata": json.dumps(config)})
        slider_file.save(slider_file.load(file), tmp_path / "b.safetensors")
        with safe_open(tmp_path / "b.safetensors", "pt") as f:
            config = json.loads(f.metadata()["lora_adapter_metadata"])
            for name in (TO_K, TO_Q, CONV):
                rank = len(f.get_tensor(f"{name}.lora_A.weight"))
                module = name.removeprefix("unet.")
                assert config["unet.alpha_pattern"].get(module, config["unet.lora_alpha"]) == rank
                assert config["unet.rank_pattern"].get(module, config["unet.r"]) == rank

    def test_concept_and_describe(self, tmp_path: Path) -> None:
        concept = Concept("smile", "a person", ["a happy person"], ["a sad person"], preserve=["a dog"])
        metadata = describe(concept, "the/base", "a.Class", "abc", 4, 2.0, ["xattn"], 1.5, {"steps": 3})
        slider_file.save(Slider("smile", plain().update, metadata), tmp_path / "s.safetensors")
        read = slider_file.load(tmp_path / "s.safetensors")
        assert concept_of(read) == concept
        assert read.metadata["sliders.base_fingerprint"] == "abc"
        assert json.loads(read.metadata["sliders.targets"]) == ["xattn"]
        assert json.loads(read.metadata["sliders.training"]) == {"steps": 3}
        assert float(read.metadata["sliders.eta"]) == 1.5

    def test_a_newer_slider_takes_an_older_ones_place(self, tmp_path: Path) -> None:
        slider_file.save(plain("older"), tmp_path / "s.safetensors")
        slider_file.save(-plain("newer"), tmp_path / "s.safetensors")
        same(slider_file.load(tmp_path / "s.safetensors").update, -plain().update)
        assert [file.name for file in tmp_path.iterdir()] == ["s.safetensors"]

    def test_an_interrupted_writer_leaves_no_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.interrupt(monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            slider_file.save(plain(), tmp_path / "s.safetensors")
        assert list(tmp_path.iterdir()) == []

    def test_an_interrupted_writer_keeps_the_older_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        slider_file.save(plain("older"), tmp_path / "s.safetensors")
        before = (tmp_path / "s.safetensors").read_bytes()
        self.interrupt(monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            slider_file.save(plain("newer"), tmp_path / "s.safetensors")
        assert (tmp_path / "s.safetensors").read_bytes() == before
        assert slider_file.load(tmp_path / "s.safetensors").name == "older"

    def interrupt(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """From here on writers stop half-way through the file."""

        def half(state: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
            save_file(state, file, metadata)
            Path(file).write_bytes(Path(file).read_bytes()[:100])
            raise KeyboardInterrupt

        monkeypatch.setattr(tensors, "save_file", half)


class TestErrors:
    """Each names the file and what is wrong with it."""

    def test_missing(self, tmp_path: Path) -> None:
        with pytest.raises(SliderError, match=r"no slider file.*absent\.safetensors"):
            slider_file.load(tmp_path / "absent.safetensors")
        with pytest.raises(SliderError, match="no slider file"):
            slider_file.load(tmp_path)

    @pytest.mark.parametrize("keep", [0, 4, 100, -10])
    def test_corrupt(self, keep: int, tmp_path: Path) -> None:
        file = write(tmp_path / "s.safetensors", plain().update)
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(SliderError, match=r"s\.safetensors is not a readable safetensors file"):
            slider_file.load(file)

    def test_no_safetensors(self, tmp_path: Path) -> None:
        torch.save({"x": torch.zeros(1)}, tmp_path / "s.pt")
        with pytest.raises(SliderError, match=r"s\.pt is a pickled file"):
            slider_file.load(tmp_path / "s.pt")

    @pytest.mark.parametrize("key", ["unet.conv_in.weight", "conv_in.lora_down.weight"])
    def test_no_lora(self, key: str, tmp_path: Path) -> None:
        save_file({key: torch.zeros(2, 2)}, tmp_path / "s.safetensors")
        with pytest.raises(SliderError, match=r"s\.safetensors holds no slider.*lora_A"):
            slider_file.load(tmp_path / "s.safetensors")

    @pytest.mark.parametrize(
        "key",
        [f"{TO_K}.lora_magnitude_vector", "lora_te_x.lora_down.weight", "unet.y.lora_B.weight", f"{TO_K}.lora_B.bias"],
    )
    def test_foreign_keys(self, key: str, tmp_path: Path) -> None:
        """What would be left out, such as DoRA's magnitudes, is refused."""
        file = write(tmp_path / "s.safetensors", plain().update, extra={key: torch.zeros(2, 2)})
        with pytest.raises(SliderError, match=rf"s\.safetensors.*{key}"):
            slider_file.load(file)

    @pytest.mark.parametrize("up", [None, (16, 2), (16, 1, 3, 3)])
    def test_factors_that_do_not_fit(self, up: tuple[int, ...] | None, tmp_path: Path) -> None:
        state = {f"{TO_K}.lora_A.weight": torch.zeros(1, 16)}
        if up is not None:
            state[f"{TO_K}.lora_B.weight"] = torch.zeros(up)
        save_file(state, tmp_path / "s.safetensors")
        with pytest.raises(SliderError, match=r"s\.safetensors.*attn2\.to_k"):
            slider_file.load(tmp_path / "s.safetensors")

    @pytest.mark.parametrize("text", ["{", "[]", '"words"', '{"unet.lora_alpha": "four"}', '{"unet.alpha_pattern": 3}'])
    def test_broken_metadata(self, text: str, tmp_path: Path) -> None:
        file = write(tmp_path / "s.safetensors", plain().update, {"lora_adapter_metadata": text})
        with pytest.raises(SliderError, match=r"s\.safetensors.*lora_adapter_metadata"):
            slider_file.load(file)

    def test_an_expression_is_not_run(self, tmp_path: Path) -> None:
        """The client would hang: both the expression and the name that it is run on are the file's."""
        name = f"unet.{'a' * 64}!"
        update = Translation({name: lowrank((4, 4), 1, dtype=torch.float32)})
        metadata = {"lora_adapter_metadata": json.dumps({"unet.r": 1, "unet.alpha_pattern": {"(a+)+b": 1}})}
        file = write(tmp_path / "s.safetensors", update, metadata)
        with pytest.raises(SliderError, match=r"s\.safetensors.*unet\.alpha_pattern.*\(a\+\)\+b.*write the modules"):
            slider_file.load(file)

    def test_no_concept(self) -> None:
        with pytest.raises(SliderError, match="'s' does not say which concept"):
            concept_of(plain())

    def test_a_concept_that_is_none(self) -> None:
        with pytest.raises(SliderError, match="'s'"):
            concept_of(Slider("s", plain().update, {"sliders.concept": "{"}))


def stable_diffusion() -> tuple[Pipeline, UNetBackbone]:
    """A client's pipeline, and our backbone on one with the same weights."""
    backbone = UNetBackbone("tiny")
    backbone.use(tiny.stable_diffusion())
    return tiny.stable_diffusion(), backbone


def stable_diffusion_xl(zeros: bool = False) -> tuple[Pipeline, UNetBackbone]:
    """The same for SDXL, with zeros or the empty prompt's own embeddings where there is no negative prompt."""
    backbone, pipes = SDXLBackbone("tiny"), [tiny.stable_diffusion_xl() for _ in range(2)]
    for pipe in pipes:
        pipe.register_to_config(force_zeros_for_empty_prompt=zeros)
    backbone.use(pipes[1])
    return pipes[0], backbone


FAMILIES = {"sd": stable_diffusion, "sdxl": stable_diffusion_xl}


def pictures(pipe: Pipeline, **how: Any) -> Tensor:
    """What the client makes of the scenes, in [-1, 1]."""
    pipe.set_progress_bar_config(disable=True)
    images: Any = pipe(
        prompt=[scene.prompt for scene in SCENES],
        generator=[torch.Generator().manual_seed(scene.seed) for scene in SCENES],
        num_inference_steps=HOW.steps,
        output_type="pt",
        **{"guidance_scale": HOW.guidance, **how},
    ).images  # pyright: ignore[reportAttributeAccessIssue]
    return images * 2 - 1


def mixed(backbone: UNetBackbone) -> Slider:
    """Every fifth layer of every part, at ranks that go round."""
    layers = [name for name in editable_modules(backbone) if not name.startswith("vae.")]
    return slider(backbone, {name: 1 + i % 3 for i, name in enumerate(layers[::5])}, "mixed", seed=4, scale=0.6)


@pytest.mark.parametrize("family", FAMILIES)
class TestClient:
    def test_our_sampling_is_the_clients(self, family: str) -> None:
        pipe, backbone = FAMILIES[family]()
        ours = sample(backbone, SCENES, HOW)
        assert (ours - pictures(pipe)).abs().max() < TINY
        assert (ours - pictures(pipe, guidance_scale=1.5)).abs().max() > SEEN

    def test_our_sampling_is_the_clients_without_guidance(self, family: str) -> None:
        pipe, backbone = FAMILIES[family]()
        ours = sample(backbone, SCENES, Sampling(HOW.steps, 1.0, 1))
        assert (ours - pictures(pipe, guidance_scale=1.0)).abs().max() < TINY

    def test_a_slider_is_the_same_in_the_client(self, family: str, tmp_path: Path) -> None:
        """At every dial, with mixed ranks, in the UNet and in each text encoder."""
        pipe, backbone = FAMILIES[family]()
        made = mixed(backbone)
        components = {name.split(".")[0] for name in made.update}
        assert components == {"unet", *backbone.encoders}
        base = pictures(pipe)
        slider_file.save(made, tmp_path / "mixed.safetensors")
        pipe.load_lora_weights(str(tmp_path / "mixed.safetensors"), adapter_name="mixed")
        for position in (-1.0, 0.5, 2.0):
            pipe.set_adapters(["mixed"], [position])
            theirs = pictures(pipe)
            with attach(backbone, [made], {"mixed": position}):
                ours = sample(backbone, SCENES, HOW)
            assert (ours - theirs).abs().max() < TINY
            assert (theirs - base).abs().max() > SEEN
        for component in components:  # control: had the client left one out, the above would have seen it
            rest = Slider("mixed", Translation({n: u for n, u in made.update.items() if n.split(".")[0] != component}))
            with attach(backbone, [rest], {"mixed": 2.0}):
                assert (sample(backbone, SCENES, HOW) - theirs).abs().max() > SEEN

    def test_two_sliders_in_the_client(self, family: str, tmp_path: Path) -> None:
        pipe, backbone = FAMILIES[family]()
        one = mixed(backbone)
        two = Slider("two", slider(backbone, {TO_K: 4, next(iter(one.update)): 2}, "two", seed=9).update)
        for made in (one, two):
            slider_file.save(made, tmp_path / f"{made.name}.safetensors")
            pipe.load_lora_weights(str(tmp_path / f"{made.name}.safetensors"), adapter_name=made.name)
        pipe.set_adapters(["mixed", "two"], [0.5, -1.0])
        with attach(backbone, [one, two], {"mixed": 0.5, "two": -1.0}):
            assert (sample(backbone, SCENES, HOW) - pictures(pipe)).abs().max() < TINY

    def test_every_row_its_own_dial(self, family: str) -> None:
        """Also under guidance, which runs every row twice, and in the text encoders, which do not."""
        _, backbone = FAMILIES[family]()
        made = mixed(backbone)
        with attach(backbone, [made]) as dials:
            dials.set({"mixed": torch.tensor([-1.0, 2.0])})
            together = sample(backbone, SCENES, HOW)
        for i, position in enumerate((-1.0, 2.0)):
            with attach(backbone, [made], {"mixed": position}):
                assert (together[i] - sample(backbone, SCENES, HOW)[i]).abs().max() < TINY


def test_zeros_stand_for_no_prompt_where_the_model_says_so() -> None:
    """SDXL as it is published (`force_zeros_for_empty_prompt`): its unconditional half has no text at all."""
    pipe, backbone = stable_diffusion_xl(zeros=True)
    client = pictures(pipe)
    assert (client - pictures(stable_diffusion_xl(zeros=False)[0])).abs().max() > SEEN
    assert (sample(backbone, SCENES, HOW) - client).abs().max() < TINY


CONFIGS: dict[str, dict[str, Any]] = {
    "alpha": {"lora_alpha": 7},
    "alpha pattern": {"lora_alpha": 7, "alpha_pattern": {TO_K.removeprefix("unet."): 3}},
    "alpha pattern, ends of names": {"lora_alpha": 7, "alpha_pattern": {"attn2.to_k": 3, "conv1": 1}},
    "alpha pattern, dots escaped": {
        "lora_alpha": 7,
        "alpha_pattern": {r"attn1\.to_q$": 3, f"^{re.escape(CONV[5:])}": 1},
    },
    "alpha pattern, parts of names": {"lora_alpha": 7, "alpha_pattern": {"to_k": 3, r".*o_q": 1, r".*nv1": 2}},
    "alpha pattern, the first of two": {"lora_alpha": 7, "alpha_pattern": {"attn2.to_k": 3, "to_k": 1}},
    "rslora": {"lora_alpha": 7, "use_rslora": True},
    "no alpha said": {},
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_clients_file_is_read_as_the_client_reads_it(case: str, tmp_path: Path) -> None:
    """Layer by layer: diffusers' own scaling of a file whose alpha is not its rank is the oracle."""
    update = slider(tiny_parts(), {TO_K: 4, TO_Q: 4, CONV: 4}).update
    config = {"r": 4, "target_modules": [name.removeprefix("unet.") for name in update], **CONFIGS[case]}
    metadata = {"lora_adapter_metadata": json.dumps({f"unet.{key}": value for key, value in config.items()})}
    file = write(tmp_path / "s.safetensors", update, metadata)
    same(slider_file.load(file).update, clients_update(file, update))


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_text_encoder_layers_under_either_name(prefix: str, tmp_path: Path) -> None:
    """transformers 5 took the `text_model.` away that files of all earlier years have; diffusers reads both."""
    backbone = tiny_parts()
    made = slider(backbone, {"text_encoder.encoder.layers.0.self_attn.q_proj": 2}, "s")
    (name, part), *_ = made.update.items()
    theirs = Translation({name.replace("text_encoder.", f"text_encoder.{prefix}"): part})
    pipe = tiny.stable_diffusion()
    pipe.load_lora_weights(str(write(tmp_path / "s.safetensors", theirs)), adapter_name="s")
    wanted = pictures(pipe)
    assert (wanted - pictures(tiny.stable_diffusion())).abs().max() > SEEN
    with attach(backbone, [slider_file.load(tmp_path / "s.safetensors")], {"s": 1.0}):
        assert (sample(backbone, SCENES, HOW) - wanted).abs().max() < TINY


def tiny_parts() -> UNetBackbone:
    """The tiny Stable Diffusion."""
    return stable_diffusion()[1]


def clients_update(file: Path, like: Translation) -> Translation:
    """The updates that diffusers makes of a file; each must be there."""
    pipe: Any = tiny.stable_diffusion()
    pipe.load_lora_weights(str(file), adapter_name="s")
    found = {}
    for name, part in like.items():
        layer = pipe.unet.get_submodule(name.removeprefix("unet."))
        assert isinstance(layer, LoraLayer)
        found[name] = part * layer.scaling["s"]
        down, up = (factors["s"].get_parameter("weight") for factors in (layer.lora_A, layer.lora_B))
        assert_close((up.flatten(1) @ down.flatten(1)).view(part.shape), part.dense())
    return Translation(found)
