import pytest
import torch

from fedfusion.soundness import sound
from fedfusion.types import FedfusionError


class Odd:
    pass


def test_what_is_sound_goes_through():
    made = torch.tensor([[1.0, 2.0]])
    assert sound("fusion", Odd(), made, (1, 2)) is made


@pytest.mark.parametrize(
    "made, said",
    [
        (None, r"fusion=Odd returns NoneType, expected a tensor of shape \[1, 2\] .mend it."),
        ([[1.0, 2.0]], "fusion=Odd returns list, "),
        (torch.zeros(2, 1), r"fusion=Odd returns shape \[2, 1\], "),
        (torch.zeros(2), r"fusion=Odd returns shape \[2\], "),
        (
            torch.tensor([[1.0, torch.nan]]),
            "fusion=Odd makes entries that are not finite .choose another, or other val",
        ),
        (torch.tensor([[1.0, -torch.inf]]), "fusion=Odd makes entries that are not finite"),
    ],
)
def test_what_is_not_is_named_with_the_key_and_the_class(made, said):
    with pytest.raises(FedfusionError, match=f"^{said}"):
        sound("fusion", Odd(), made, torch.Size((1, 2)))
