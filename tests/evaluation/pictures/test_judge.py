"""The judge's file, and what it says."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sliders.errors import SliderError
from sliders.evaluation.pictures.judge import AttributeJudge
from tests.evaluation.judges import constant

VALUES = {"mood": ["sad", "happy", "angry"], "hat": ["no", "yes"]}


@pytest.fixture
def judge() -> AttributeJudge:
    """A random one."""
    torch.manual_seed(0)
    made = AttributeJudge(VALUES, width=8)
    made.get_buffer("where_hat")[:20, 10:50] = 1
    return made.eval()


def test_probabilities_are_of_each_attribute_s_values(judge: AttributeJudge) -> None:
    images = torch.rand(5, 3, 64, 64) * 2 - 1
    read = judge.probabilities(images)
    assert {name: p.shape for name, p in read.items()} == {"mood": (5, 3), "hat": (5, 2)}
    for p in read.values():
        torch.testing.assert_close(p.sum(1), torch.ones(5))
        assert (p > 0).all()
        assert not p.requires_grad
    assert read["mood"].std(0).max() > 0, "it looks at the picture"


def test_batches_do_not_matter(judge: AttributeJudge) -> None:
    images = torch.rand(5, 3, 64, 64) * 2 - 1
    for name, p in judge.probabilities(images, batch=2).items():
        torch.testing.assert_close(p, judge.probabilities(images)[name])


def test_a_picture_of_another_size_is_resized(judge: AttributeJudge) -> None:
    small = torch.rand(2, 3, 16, 16) * 2 - 1
    large = small.repeat_interleave(8, 2).repeat_interleave(8, 3)
    for name, p in judge.probabilities(large).items():
        torch.testing.assert_close(p, judge.probabilities(small)[name], rtol=1e-4, atol=1e-5)


def test_a_file_keeps_everything(judge: AttributeJudge, tmp_path: Path) -> None:
    judge.save(tmp_path / "judge.safetensors")
    again = AttributeJudge.load(tmp_path / "judge.safetensors")
    assert {name: list(values) for name, values in again.values.items()} == VALUES
    images = torch.rand(4, 3, 64, 64) * 2 - 1
    for name, p in judge.probabilities(images).items():
        torch.testing.assert_close(again.probabilities(images)[name], p, rtol=0.02, atol=5e-3)  # stored in float16
    assert torch.equal(again.where("hat"), judge.where("hat"))
    assert int(again.where("hat").sum()) == 20 * 40
    assert not again.where("mood").any()
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    assert all(p.dtype == torch.float32 for p in again.parameters())
    assert [file.name for file in tmp_path.iterdir()] == ["judge.safetensors"]


def test_biases_survive_the_file(tmp_path: Path) -> None:
    constant({"mood": {"sad": 0.1, "happy": 0.9}}).save(tmp_path / "judge.safetensors")
    read = AttributeJudge.load(tmp_path / "judge.safetensors").probabilities(torch.zeros(1, 3, 64, 64))
    assert read["mood"][0].tolist() == pytest.approx([0.1, 0.9], abs=1e-3)


def test_a_missing_file_is_an_error_that_says_how_to_make_it(tmp_path: Path) -> None:
    with pytest.raises(SliderError, match=r"nowhere.*avatars"):
        AttributeJudge.load(tmp_path / "nowhere")


def test_a_broken_file_is_an_error_that_names_it(judge: AttributeJudge, tmp_path: Path) -> None:
    whole = tmp_path / "judge.safetensors"
    judge.save(whole)
    for size in (0, 4, whole.stat().st_size // 2):
        (tmp_path / "broken").write_bytes(whole.read_bytes()[:size])
        with pytest.raises(SliderError, match="broken"):
            AttributeJudge.load(tmp_path / "broken")


@pytest.mark.parametrize(
    "metadata",
    [
        None,
        {"values": '{"mood": ["sad"]}'},
        {"values": "no JSON", "width": "8"},
        {"values": "3", "width": "8"},
        {"values": '{"mood": ["sad"]}', "width": "8"},
    ],
)
def test_another_file_is_an_error_that_names_it(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"something": torch.zeros(2)}, tmp_path / "other", metadata)
    with pytest.raises(SliderError, match="other"):
        AttributeJudge.load(tmp_path / "other")


def test_a_column_is_found_or_the_error_says_what_there_is(judge: AttributeJudge) -> None:
    assert judge.column("mood", "angry") == 2
    with pytest.raises(SliderError, match="mood, hat"):
        judge.column("beard", "yes")
    with pytest.raises(SliderError, match="sad, happy, angry"):
        judge.column("mood", "yes")
