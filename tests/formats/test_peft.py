"""PEFT folders against the program that they are for: `PeftModel` itself, on tiny models of the true architectures."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from sliders import formats
from sliders.algebra.edit import Translation
from sliders.algebra.slider import Slider
from sliders.backbones.language.model import CausalLMBackbone
from sliders.concept import Concept
from sliders.errors import SliderError
from sliders.formats import peft, tensors
from sliders.formats.metadata import concept_of, describe
from sliders.runtime.attach import attach
from tests import tiny, tiny_lm
from tests.factory import lowrank

TINY = 1e-4
"""What float32 may do to a log-probability."""
SEEN = 1e-2
"""A change that no rounding makes."""
TOKENS = torch.arange(2, 42).view(2, 20)
FAMILIES = ["llama", "gpt2", "neox"]
Q, UP = "lm.model.layers.0.self_attn.q_proj", "lm.model.layers.1.mlp.up_proj"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A tiny model of each family."""
    where = tmp_path_factory.mktemp("lm")
    return {kind: tiny.save(tiny_lm.language_model(kind), where / kind) for kind in FAMILIES}


def loaded(folder: Path) -> CausalLMBackbone:
    """Our side of it."""
    model = CausalLMBackbone(str(folder))
    model.load()
    return model


def client(folder: Path, adapter: Path | None = None) -> Any:
    """The other side, which knows nothing of ours."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    return model if adapter is None else PeftModel.from_pretrained(model, str(adapter))


@torch.no_grad()
def said(lm: Any) -> Tensor:
    """Log-probabilities ``[2, 20, vocabulary]`` of fixed tokens."""
    return lm(input_ids=TOKENS).logits.log_softmax(-1)


def turn(model: Any, position: float) -> None:
    """As PEFT's own users do it."""
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.set_scale("default", position)


def on(backbone: CausalLMBackbone, ranks: Mapping[str, int], name: str = "s", seed: int = 0) -> Slider:
    """A random slider on some layers; GPT-2's keep their weights transposed, an update does not."""
    updates = {}
    for i, (module, rank) in enumerate(ranks.items()):
        weight = backbone.get_submodule(module).get_parameter("weight")
        transposed = type(backbone.get_submodule(module)).__name__ == "Conv1D"
        shape = tuple(weight.T.shape if transposed else weight.shape)
        updates[module] = lowrank(shape, rank, 1000 * seed + i, torch.float32) * 2
    return Slider(name, Translation(updates), {"note": "äöü\n"})


def mixed(backbone: CausalLMBackbone, name: str = "mixed", seed: int = 4) -> Slider:
    """On every layer, at ranks that go round."""
    return on(backbone, {n: 1 + i % 3 for i, n in enumerate(backbone.select_targets(["full"]))}, name, seed)


def plain(name: str = "s") -> Slider:
    """Two layers at two ranks, of the tiny Llama's shapes."""
    update = Translation({Q: lowrank((16, 16), 1, 0, torch.float32), UP: lowrank((24, 16), 3, 1, torch.float32)})
    return Slider(name, update, {"sliders.base_fingerprint": "abc", "note": "äöü\n"})


def same(one: Translation, other: Translation) -> None:
    """The same layers and, apart from factors, the same updates."""
    assert set(one) == set(other)
    for module, update in one.items():
        assert other[module].shape == update.shape
        assert_close(other[module].dense(), update.dense())


@pytest.mark.parametrize("kind", FAMILIES)
class TestClient:
    def test_a_slider_is_the_same_in_the_client(self, kind: str, folders: Mapping[str, Path], tmp_path: Path) -> None:
        """At every dial, with mixed ranks, on every kind of layer."""
        backbone = loaded(folders[kind])
        made, base = mixed(backbone), said(client(folders[kind]))
        assert {u.rank for u in made.update.values()} == {1, 2, 3}
        place = backbone.save_slider(made, tmp_path)
        theirs = client(folders[kind], place)
        adapted = [layer for layer in theirs.modules() if isinstance(layer, LoraLayer)]
        assert len(adapted) == len(made.update)
        with attach(backbone, [made], {"mixed": 1.0}):
            assert (said(theirs) - said(backbone.lm)).abs().max() < TINY, "dial 1 is what it is loaded at"
        for position in (-2.0, 0.5):
            turn(theirs, position)
            with attach(backbone, [made], {"mixed": position}):
                ours = said(backbone.lm)
            assert (said(theirs) - ours).abs().max() < TINY
            assert (ours - base).abs().max() > SEEN
        turn(theirs, 0.0)
        assert torch.equal(said(theirs), base)

    def test_one_layer_less_is_seen(self, kind: str, folders: Mapping[str, Path], tmp_path: Path) -> None:
        """The control: whichever of the first block's layers the client left out, the numbers would differ."""
        backbone = loaded(folders[kind])
        made = mixed(backbone)
        theirs = said(client(folders[kind], backbone.save_slider(made, tmp_path)))
        for left_out in [name for name in made.update if re.search(r"\.0\.", name)]:
            rest = Slider("mixed", Translation({n: u for n, u in made.update.items() if n != left_out}))
            with attach(backbone, [rest], {"mixed": 1.0}):
                assert (said(backbone.lm) - theirs).abs().max() > SEEN, left_out

    def test_the_printed_lines_do_what_they_say(self, kind: str, folders: Mapping[str, Path], tmp_path: Path) -> None:
        backbone = loaded(folders[kind])
        made = mixed(backbone)
        place = backbone.save_slider(made, tmp_path)
        names: dict[str, Any] = {
            "PeftModel": PeftModel, "AutoModelForCausalLM": AutoModelForCausalLM, "BASE": str(folders[kind]),
        }  # fmt: skip
        exec("\n".join(backbone.usage(made, place)).replace("1.0", "-1.5"), names)
        with attach(backbone, [made], {"mixed": -1.5}):
            assert (said(names["model"]) - said(backbone.lm)).abs().max() < TINY

    def test_it_is_read_back(self, kind: str, folders: Mapping[str, Path], tmp_path: Path) -> None:
        backbone = loaded(folders[kind])
        made = mixed(backbone)
        read = formats.load(backbone.save_slider(made, tmp_path))
        same(read.update, made.update)
        assert {n: u.rank for n, u in read.update.items()} == {n: u.rank for n, u in made.update.items()}


THEIRS: dict[str, dict[str, Any]] = {
    "alpha is the rank": {"r": 4, "lora_alpha": 4},
    "alpha": {"r": 4, "lora_alpha": 7},
    "rank pattern": {"r": 4, "lora_alpha": 7, "rank_pattern": {"(c_fc|up_proj)": 2, r".*\.1\..*": 3}},
    "alpha pattern": {
        "r": 4, "lora_alpha": 7,
        "alpha_pattern": {
            r".*0\.attn\.c_attn": 2, "1.mlp.c_fc": 5, r"1\.mlp\.up_proj$": 5, "^model.layers.1.self_attn.q_proj": 6,
            r"^transformer\.h\.1\.attn\.c_attn": 6, "c_fc": 3, "up_proj": 3,
        },
    },
    "both patterns": {
        "r": 4, "lora_alpha": 7, "rank_pattern": {r".*\.0\..*": 2},
        "alpha_pattern": {"0.attn.c_attn": 9, "0.self_attn.q_proj": 9},
    },
    "rslora": {"r": 4, "lora_alpha": 7, "use_rslora": True},
    "rslora and patterns": {"r": 4, "lora_alpha": 7, "use_rslora": True, "rank_pattern": {r".*\.0\..*": 2}},
    "some layers": {"r": 2, "lora_alpha": 3, "layers_to_transform": [0, 2]},
}  # fmt: skip


def their_lora(folder: Path, kind: str, out: Path, **config: Any) -> Any:
    """A random LoRA that PEFT has made and written; the model it is on."""
    torch.manual_seed(3)
    targets = ["c_attn", "c_fc"] if kind == "gpt2" else ["q_proj", "up_proj"]
    wanted: Any = {"target_modules": targets, "fan_in_fan_out": kind == "gpt2", "task_type": "CAUSAL_LM", **config}
    model = get_peft_model(client(folder), LoraConfig(**wanted))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(0, 0.4)
    model.eval().save_pretrained(str(out))
    return model


@pytest.mark.parametrize("case", THEIRS)
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_lora_that_peft_wrote_is_read_as_peft_reads_it(
    case: str, kind: str, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    """Of patterns that both match, the first counts; PEFT writes them sorted."""
    theirs = said(their_lora(folders[kind], kind, tmp_path / "theirs", **THEIRS[case]))
    backbone = loaded(folders[kind])
    base = said(backbone.lm)
    read = peft.load(tmp_path / "theirs")
    assert read.name == "theirs"
    with attach(backbone, [read], {"theirs": 1.0}):
        assert (said(backbone.lm) - theirs).abs().max() < TINY
    assert (theirs - base).abs().max() > SEEN
    peft.save(read, tmp_path / "again", str(folders[kind]), kind == "gpt2")
    assert (said(client(folders[kind], tmp_path / "again")) - theirs).abs().max() < TINY


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_alpha_is_not_rounded_to_the_file_s_precision(
    dtype: torch.dtype, folders: Mapping[str, Path], tmp_path: Path
) -> None:
    """PEFT reads factors of half precision as float32 and only then scales."""
    their_lora(folders["llama"], "llama", tmp_path / "theirs", r=4, lora_alpha=7)
    file = tmp_path / "theirs" / peft.WEIGHTS
    save_file({name: factor.to(dtype) for name, factor in load_file(file).items()}, file, {"format": "pt"})
    backbone = loaded(folders["llama"])
    with attach(backbone, [peft.load(tmp_path / "theirs")], {"theirs": 1.0}):
        assert (said(backbone.lm) - said(client(folders["llama"], tmp_path / "theirs"))).abs().max() < TINY


class TestFolder:
    def test_round_trip_with_what_it_says(self, tmp_path: Path) -> None:
        concept = Concept("mood", "be", ["be happy"], ["be sad"], contexts=["day"], modality="text")
        metadata = describe(concept, "the/base", "a.Class", "abc", 4, 2.0, ["full"], 1.5, {"steps": 3})
        peft.save(Slider("mood", plain().update, metadata), tmp_path / "new" / "folder", "the/base")
        read = formats.load(tmp_path / "new" / "folder")
        same(read.update, plain().update)
        assert read.name == "mood", "the slider's name, not the folder's"
        assert concept_of(read) == concept
        assert metadata.items() <= dict(read.metadata).items()

    def test_it_holds_what_peft_needs_and_nothing_else(self, tmp_path: Path) -> None:
        peft.save(plain(), tmp_path / "s", "the/base")
        assert {file.name for file in (tmp_path / "s").iterdir()} == {peft.WEIGHTS, peft.CONFIG}
        config = json.loads((tmp_path / "s" / peft.CONFIG).read_text())
        assert config["base_model_name_or_path"] == "the/base"
        with safe_open(tmp_path / "s" / peft.WEIGHTS, "pt") as f:
            assert f.metadata()["note"] == "äöü\n"
            assert f.metadata()["format"] == "pt"

    def test_a_name_that_ends_another_name_keeps_its_own_rank(self, tmp_path: Path) -> None:
        """PEFT matches patterns at the ends of names; ``x`` of rank 1 must not catch ``a.x`` of rank 2."""
        layers = {"lm.x": 1, "lm.a.x": 2, "lm.b.x": 2}
        update = Translation({n: lowrank((4, 4), rank, i, torch.float32) for i, (n, rank) in enumerate(layers.items())})
        peft.save(Slider("s", update), tmp_path / "s", "base")
        same(peft.load(tmp_path / "s").update, update)

    def test_layers_that_share_factors(self, tmp_path: Path) -> None:
        part = lowrank((16, 16), 2, dtype=torch.float32)
        shared = Slider("s", Translation({Q: part, Q.replace("0", "1"): part}))
        peft.save(shared, tmp_path / "s", "base")
        same(peft.load(tmp_path / "s").update, shared.update)

    def test_without_a_name_it_is_the_folder_s(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        peft.save(plain(), tmp_path / "mood", "base")
        file = tmp_path / "mood" / peft.WEIGHTS
        save_file(load_file(file), file)
        assert peft.load(tmp_path / "mood").name == "mood"
        monkeypatch.chdir(tmp_path / "mood")
        assert peft.load(Path()).name == "mood"

    def test_a_newer_slider_takes_an_older_ones_place(self, tmp_path: Path) -> None:
        peft.save(plain("older"), tmp_path / "s", "base")
        peft.save(-plain("newer"), tmp_path / "s", "base")
        read = peft.load(tmp_path / "s")
        assert read.name == "newer"
        same(read.update, -plain().update)
        assert [file.name for file in tmp_path.iterdir()] == ["s"]

    def test_what_else_lies_there_stays(self, tmp_path: Path) -> None:
        peft.save(plain("older"), tmp_path / "s", "base")
        (tmp_path / "s" / "README.md").write_text("notes")
        (tmp_path / "s" / "optimizer").mkdir()
        (tmp_path / "s" / "optimizer" / "state").write_text("precious")
        peft.save(plain("newer"), tmp_path / "s", "base")
        assert peft.load(tmp_path / "s").name == "newer"
        assert (tmp_path / "s" / "README.md").read_text() == "notes"
        assert (tmp_path / "s" / "optimizer" / "state").read_text() == "precious"

    def test_a_foreign_folder_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "s").mkdir()
        (tmp_path / "s" / "thesis.txt").write_text("years of work")
        with pytest.raises(SliderError, match=r"/s is there and holds no slider"):
            peft.save(plain(), tmp_path / "s", "base")
        assert (tmp_path / "s" / "thesis.txt").read_text() == "years of work"
        assert [file.name for file in tmp_path.iterdir()] == ["s"]

    def test_a_file_of_that_name_is_left_alone(self, tmp_path: Path) -> None:
        (tmp_path / "s").write_text("years of work")
        with pytest.raises(SliderError, match=r"/s is there and holds no slider"):
            peft.save(plain(), tmp_path / "s", "base")
        assert (tmp_path / "s").read_text() == "years of work"

    @pytest.mark.parametrize("older", [False, True])
    @pytest.mark.parametrize("at", ["weights", "config", "move"])
    def test_an_interrupted_writer_leaves_what_was_there(
        self, older: bool, at: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if older:
            peft.save(plain("older"), tmp_path / "s", "base")
        before = {file.name: file.read_bytes() for file in (tmp_path / "s").glob("*")}
        self.interrupt(at, monkeypatch)
        with pytest.raises(KeyboardInterrupt):
            peft.save(plain("newer"), tmp_path / "s", "base")
        monkeypatch.undo()
        assert {file.name: file.read_bytes() for file in (tmp_path / "s").glob("*")} == before
        assert [file.name for file in tmp_path.iterdir()] == ["s"] * older

    def interrupt(self, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """From here on writers stop half-way through the weights, before the configuration, or before the end."""
        rename = Path.rename

        def half(state: dict[str, Tensor], file: Path, metadata: dict[str, str]) -> None:
            save_file(state, file, metadata)
            Path(file).write_bytes(Path(file).read_bytes()[:100])
            raise KeyboardInterrupt

        def stop(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        def not_the_new_one(path: Path, target: Path) -> Path:
            if path.name == "new":
                raise KeyboardInterrupt
            return rename(path, target)

        where, name, double = {
            "weights": (tensors, "save_file", half),
            "config": (peft, "_config", stop),
            "move": (Path, "rename", not_the_new_one),
        }[at]
        monkeypatch.setattr(where, name, double)


class TestErrors:
    """Each names the place and what is wrong there."""

    def saved(self, folder: Path, **changes: Any) -> Path:
        """A slider with another configuration; a value of ... takes the key out."""
        peft.save(plain(), folder / "s", "base")
        config = json.loads((folder / "s" / peft.CONFIG).read_text()) | changes
        (folder / "s" / peft.CONFIG).write_text(json.dumps({k: v for k, v in config.items() if v is not ...}))
        return folder / "s"

    @pytest.mark.parametrize("absent", [peft.WEIGHTS, peft.CONFIG])
    def test_missing(self, absent: str, tmp_path: Path) -> None:
        with pytest.raises(SliderError, match=r"no slider in .*absent"):
            peft.load(tmp_path / "absent")
        (self.saved(tmp_path) / absent).unlink()
        with pytest.raises(SliderError, match=rf"no slider in .*/s.*{absent}"):
            peft.load(tmp_path / "s")

    @pytest.mark.parametrize("keep", [0, 4, 100, -10])
    def test_corrupt_weights(self, keep: int, tmp_path: Path) -> None:
        file = self.saved(tmp_path) / peft.WEIGHTS
        file.write_bytes(file.read_bytes()[:keep])
        with pytest.raises(SliderError, match=r"/s/adapter_model\.safetensors is not a readable"):
            peft.load(tmp_path / "s")

    @pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x81"])
    def test_corrupt_configuration(self, content: bytes, tmp_path: Path) -> None:
        (self.saved(tmp_path) / peft.CONFIG).write_bytes(content)
        with pytest.raises(SliderError, match=r"cannot read the configuration .*/s/adapter_config\.json"):
            peft.load(tmp_path / "s")

    @pytest.mark.parametrize("content", ["[]", "{}", '"words"', '{"peft_type": "IA3"}'])
    def test_another_kind_of_adapter(self, content: str, tmp_path: Path) -> None:
        (self.saved(tmp_path) / peft.CONFIG).write_text(content)
        with pytest.raises(SliderError, match=r"adapter_config\.json is not the configuration of a LoRA"):
            peft.load(tmp_path / "s")

    @pytest.mark.parametrize(
        "change",
        [
            {"use_dora": True},
            {"bias": "lora_only"},
            {"bias": "all"},
            {"init_lora_weights": "pissa"},
            {"init_lora_weights": "olora"},
            {"alora_invocation_tokens": [3, 4]},
        ],
        ids=str,
    )
    def test_what_is_no_low_rank_update_alone(self, change: dict[str, Any], tmp_path: Path) -> None:
        """The configuration says that the client does more than to add B A; all of these would be read wrongly."""
        with pytest.raises(SliderError, match=r"adapter_config\.json.*" + next(iter(change))):
            peft.load(self.saved(tmp_path, **change))

    @pytest.mark.parametrize(
        "change",
        [
            {"lora_alpha": "four"},
            {"lora_alpha": None},
            {"lora_alpha": [1]},
            {"alpha_pattern": 3},
            {"alpha_pattern": {"(": 3}},
            {"alpha_pattern": {"(a+)+b": 3}},
            {"alpha_pattern": {"(c_fc|up_proj)": 3}},
            {"alpha_pattern": {"q_proj": "x"}},
            pytest.param({"alpha_pattern": {"q_proj": 10**400}}, id="an alpha that is too large"),
        ],
        ids=str,
    )
    def test_a_malformed_alpha(self, change: dict[str, Any], tmp_path: Path) -> None:
        key = next(iter(change))
        pattern = {"alpha_pattern": change.get("alpha_pattern", {})}
        with pytest.raises(SliderError, match=rf"adapter_config\.json.*{key}"):
            peft.load(self.saved(tmp_path, **(change | pattern)))

    @pytest.mark.parametrize(
        "key",
        [
            "base_model.model.x.lora_magnitude_vector",
            "base_model.model.x.lora_embedding_A",
            "base_model.model.lm_head.weight",
            "base_model.model.x.lora_B.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias",
        ],
    )
    def test_foreign_keys(self, key: str, tmp_path: Path) -> None:
        file = self.saved(tmp_path) / peft.WEIGHTS
        save_file({**load_file(file), key: torch.zeros(2, 2)}, file)
        with pytest.raises(SliderError, match=rf"adapter_model\.safetensors.*{re.escape(key)}"):
            peft.load(tmp_path / "s")

    def test_nothing_at_all(self, tmp_path: Path) -> None:
        save_file({}, self.saved(tmp_path) / peft.WEIGHTS)
        with pytest.raises(SliderError, match=r"adapter_model\.safetensors holds no"):
            peft.load(tmp_path / "s")

    @pytest.mark.parametrize(
        ("down", "up"),
        [((1, 16), None), ((1, 16), (16, 2)), ((1, 16), (16, 1, 1)), ((1, 16, 3), (16, 1)), ((0, 16), (16, 0))],
    )
    def test_factors_that_do_not_fit(self, down: tuple[int, ...], up: tuple[int, ...] | None, tmp_path: Path) -> None:
        name = "base_model.model." + Q.removeprefix("lm.")
        state = {f"{name}.lora_A.weight": torch.zeros(down)}
        if up is not None:
            state[f"{name}.lora_B.weight"] = torch.zeros(up)
        save_file(state, self.saved(tmp_path) / peft.WEIGHTS)
        with pytest.raises(SliderError, match=r"adapter_model\.safetensors.*self_attn\.q_proj.*lora_B"):
            peft.load(tmp_path / "s")

    @pytest.mark.parametrize("name", ["unet.conv", "model.layers.0.mlp.up_proj"])
    def test_a_slider_of_another_kind_is_not_written(self, name: str, tmp_path: Path) -> None:
        other = Slider("s", Translation({name: lowrank((4, 4), 1, dtype=torch.float32)}))
        with pytest.raises(SliderError, match=rf"'s'.*{name}"):
            peft.save(other, tmp_path / "s", "base")
        assert not list(tmp_path.iterdir())

    def test_a_convolution_is_not_written(self, tmp_path: Path) -> None:
        other = Slider("s", Translation({"lm.conv": lowrank((4, 4, 3, 3), 1, dtype=torch.float32)}))
        with pytest.raises(SliderError, match=r"'s'.*lm\.conv"):
            peft.save(other, tmp_path / "s", "base")

    def test_a_slider_that_changes_nothing_is_not_written(self, tmp_path: Path) -> None:
        """PEFT takes no adapter without layers."""
        with pytest.raises(SliderError, match=r"'s'.*no layer"):
            peft.save(Slider("s", Translation({})), tmp_path / "s", "base")
        assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [lambda folder: folder / "absent", lambda folder: folder])
def test_a_path_that_is_neither_a_file_nor_a_folder_of_a_slider(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(SliderError, match="no slider"):
        formats.load(wrong(tmp_path))
