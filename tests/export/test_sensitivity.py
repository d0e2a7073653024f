"""Which layers int8 hurts most: known answers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mm_core.export.sensitivity import ladder, ranked, worst


def test_the_layer_with_an_outlier_is_found_by_its_place_in_the_run():
    """Registered in another order than it runs, and with one input whose range hides what matters."""

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.last = torch.nn.Conv2d(4, 1, 1)
            self.third = torch.nn.Conv2d(4, 4, 3, padding=1)
            self.first = torch.nn.Conv2d(3, 4, 3, padding=1)
            self.second = torch.nn.Conv2d(4, 4, 3, padding=1)
            self.spoilt = self.third

        def forward(self, image):
            x = torch.tanh(self.second(torch.tanh(self.first(image))))
            spike = torch.zeros_like(x)
            spike[..., 0, 0] = 3000.0  # one pixel stretches the range 3000 times
            return torch.sigmoid(self.last(torch.tanh(self.third(x + spike))))

    net, images = Net().eval(), np.random.default_rng(0).standard_normal((2, 3, 16, 16), dtype=np.float32)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = ranked(net, images)
    assert found[0] == 2 and sorted(found) == [0, 1, 2], "the last is in float anyway"
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items()), "nothing is changed"
    assert not any(module._forward_pre_hooks for module in net.modules())


def test_ever_more_layers_up_to_half():
    assert ladder([5, 3, 9, 0, 1, 2, 4, 6]) == [[], [5], [3, 5], [0, 3, 5, 9]]
    assert ladder([]) == [[]]


def test_the_worst_category_counts():
    off = np.zeros((3, 2, 2))
    off[2] = 0.5
    assert worst(off, ["pets", "pets", "cards"]) == pytest.approx(0.25)
    assert worst(off, ["pets", "cards", "cards"]) == pytest.approx(0.125)
