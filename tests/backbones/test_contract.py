"""What the contract's suite asks of a family's tests."""

import pytest

from tests.backbones.contract import BackboneContract


def test_a_family_that_says_nothing_of_its_model_is_refused() -> None:
    with pytest.raises(AssertionError, match=r"TestOpen does not say .*pipeline"):
        type("TestOpen", (BackboneContract,), {})
    type("Between", (BackboneContract,), {})  # control: what others derive from may leave it open
