"""Every command on the CPU in both precisions, and on an accelerator that is pretended; see `tests.machines`."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import yaml
from safetensors.torch import load_file

import train
from sliders.cli import main as cli
from sliders.media import image, text
from tests import pretend
from tests.commands import ROOT, run
from tests.machines import CASES, CPU, FAMILIES, PICTURES, Case, Where, World, run_case, table

Worlds = Callable[[str], World]


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Worlds:
    """The folder of a family, made when it is first asked for."""
    made: dict[str, World] = {}

    def of(family: str) -> World:
        if family not in made:
            made[family] = World(tmp_path_factory.mktemp("world"), family)
        return made[family]

    return of


@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_the_cpu_in_bfloat16(case: Case, worlds: Worlds, tmp_path: Path) -> None:
    run_case(case, worlds(case.family), tmp_path, Where("cpu", "bfloat16", CPU))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_the_cpu_in_float32(case: Case, worlds: Worlds, tmp_path: Path) -> None:
    run_case(case, worlds(case.family), tmp_path, Where("cpu", "float32", CPU))


@pytest.mark.parametrize("family", FAMILIES)
def test_on_a_pretended_accelerator(family: str, tmp_path: Path) -> None:
    ended = pretended("-m", "tests.pretended", family, tmp_path, tmp_path / "ended.json")
    assert ended.returncode == 0, ended.stderr
    found = json.loads((tmp_path / "ended.json").read_text())
    assert list(found) == [case.command for case in CASES if case.family == family]
    assert {command: error for command, error in found.items() if error} == {}


def pretended(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run Python in the repository, with one thread."""
    known = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = [sys.executable, *map(str, arguments)]
    return subprocess.run(words, env=known, cwd=ROOT, capture_output=True, text=True, check=False)


_CHECK = """
import torch
from sliders.media import image, text
from tests import pretend
pretend.register()
with pretend.accelerator() as device:
    there, here = torch.ones(3, device=device), torch.ones(3)
    assert (there.device, (there + 1).device, there.cpu().device) == (device, device, here.device)
    assert torch.equal((2 * there + torch.tensor(1.0)).cpu(), 3 * here)
    assert torch.equal(there[[0, 2]].cpu(), here[:2])
    layer = torch.nn.Linear(3, 2).to(device)
    layer(there).sum().backward()
    assert layer.weight.grad.device == device
    for mix in (lambda: there + here, lambda: torch.cat([there, here]), lambda: layer(here)):
        try:
            mix()
        except pretend.Mixed:
            continue
        raise AssertionError("what an accelerator refuses went through")
    try:
        there.numpy()
    except (TypeError, RuntimeError):
        print("refused")
"""


def test_the_pretended_accelerator_refuses_what_a_real_one_would() -> None:
    ended = pretended("-c", _CHECK)
    assert ended.stdout.strip().endswith("refused"), ended.stderr


def test_it_is_not_there_where_it_is_not_pretended() -> None:
    with pytest.raises(RuntimeError):
        torch.ones(1, device=pretend.NAME)


def test_the_docs_show_what_is_run() -> None:
    assert table() in (ROOT / "docs" / "machines.md").read_text(encoding="utf-8")
    assert {case.family for case in CASES} == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_slider_of_a_base_in_half_is_trained_in_float32(family: str, worlds: Worlds, tmp_path: Path) -> None:
    """And is nearly the one that is trained on the base in float32."""
    world = worlds(family)
    found = {}
    for dtype in ("float32", "bfloat16", "bfloat16"):
        runs = tmp_path / f"{dtype}_{len(found)}"
        trainer = {**CPU, "callbacks": None, "max_steps": 2}
        ended = world.train("happy", runs, trainer, "--model.backbone.init_args.dtype", dtype)
        assert ended.code == 0, ended.err
        found[runs.name] = load_file(next(runs.rglob("*.safetensors")))
    whole, half, again = found.values()
    assert {factor.dtype for factor in half.values()} == {torch.float32}
    assert all(torch.equal(factor, again[name]) for name, factor in half.items())
    ups = [name for name in whole if "lora_B" in name or "lora.up" in name]
    assert any(whole[name].any() for name in ups)
    assert not all(torch.equal(whole[name], half[name]) for name in ups)
    first = [torch.cat([kept[name].flatten() for name in ups]) for kept in (whole, half)]
    assert torch.nn.functional.cosine_similarity(first[0], first[1], dim=0) > 0.8


class TestFlags:
    """Of commands and of a training."""

    @pytest.mark.parametrize("command", ["preview", "generate", "evaluate", "bake", "laws", "explain", "demo"])
    def test_a_device_that_is_not_there(self, command: str, worlds: Worlds, tmp_path: Path) -> None:
        world, absent = worlds("Stable Diffusion"), f"cuda:{torch.cuda.device_count()}"
        one, model = world.sliders()[0], world.folder / "model"
        whose = ["--base", model]
        words = {
            "preview": [world.folder / "happy.yaml", *whose],
            "generate": ["a person", *whose, "--out", tmp_path / "out.png"],
            "evaluate": [one, *whose],
            "bake": [one, tmp_path / "out", *whose],
            "laws": [f"[{one}]", *whose],
            "explain": [one, "--base", model, "--any_base", "true"],
            "demo": ["--base", model, "--sliders", f"[{one}]"],
        }[command]
        ended = run(cli.main, command, *words, "--device", absent)
        assert ended.code == 1
        assert f"device is {absent}, but this machine has" in ended.err
        assert ended.err.count("\n") == 1
        assert not list(tmp_path.iterdir())

    def test_they_go_before_the_backbone_s_own(self, worlds: Worlds, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: list[torch.dtype] = []
        monkeypatch.setattr(text.MEDIUM, "generate", lambda language, *rest: seen.append(language.dtype))
        kind = ["--backbone", "sliders.backbones.language.model.CausalLMBackbone"]
        given = [*kind, "--backbone.model", worlds("language").folder / "model", "--backbone.dtype", "float16"]
        for more in ([], ["--dtype", "bfloat16"]):
            ended = run(cli.main, "generate", "How are you?", *given, *more)
            assert ended.code == 0, ended.err
        assert seen == [torch.float16, torch.bfloat16]

    def test_a_training_elsewhere_than_its_trainer(self, worlds: Worlds, tmp_path: Path) -> None:
        world = worlds("Stable Diffusion")
        config = yaml.safe_load((world.folder / "happy_run.yaml").read_text())
        config["trainer"]["accelerator"] = "cpu"
        config["model"]["backbone"]["init_args"] |= {"device": "cuda", "model": str(tmp_path / "nothing")}
        (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
        ended = run(train.main, "--config", tmp_path / "run.yaml", "--runs", tmp_path / "runs")
        assert ended.code == 1
        assert "backbone.device is cuda, but the trainer's is cpu" in ended.err

    @pytest.mark.parametrize("family", PICTURES)
    def test_the_base_of_a_command_is_what_they_say(
        self, family: str, worlds: Worlds, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[torch.dtype] = []

        def look(backbone: Any, wanted: Any, how: Any = None) -> torch.Tensor:
            seen.append(cast(torch.dtype, backbone.dtype))
            return torch.zeros(len(wanted), 3, 8, 8)

        monkeypatch.setattr(image, "sample", look)
        for dtype in ("bfloat16", "float32"):
            run_case(Case("generate", family), worlds(family), tmp_path, Where("cpu", dtype, CPU))
        assert seen == [torch.bfloat16] * 2 + [torch.float32] * 2
