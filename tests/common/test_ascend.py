"""What Ascend's attention cannot take is refused before anything loads."""

import pytest

from common.ascend import check_attention
from common.errors import InputError
from common.models import TransformerConfig


def test_the_released_model_takes_five_guided_videos():
    check_attention("ascend:0", TransformerConfig(), 10)
    with pytest.raises(InputError, match=r"folds 12 rows of 24 heads .* at most 10 rows go together"):
        check_attention("ascend:0", TransformerConfig(), 12)
    check_attention("ascend:0", TransformerConfig(sparse1d=False), 12)
    check_attention("cpu", TransformerConfig(), 12)


def test_head_widths():
    narrow = TransformerConfig(num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24)
    check_attention("cuda:0", narrow, 2)
    with pytest.raises(InputError, match=r"got 12, .* a multiple of 16; choose 48 or 96"):
        check_attention("ascend", narrow, 2)
