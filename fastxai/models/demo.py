"""The demo network: [R]'s CNN, trained on CIFAR-10 for 14 epochs with the settings of examples/train_demo.py.

The weights here get 84.47 % of the test images right. Of the photos of ``fastxai.data.demo_photos`` they call the cat a
"cat" (77 %) and the motorcycle, which is none of the classes, an "automobile" (59 %).
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file

from fastxai.data.cifar10 import CLASSES as CLASSES
from fastxai.models.cnn import CNN

__all__ = ["CLASSES", "DEMO_MEAN", "DEMO_STD", "demo"]

DEMO_MEAN = (0.4914, 0.4822, 0.4465)
DEMO_STD = (0.2470, 0.2435, 0.2616)
WEIGHTS = Path(__file__).with_suffix(".safetensors")


def demo() -> CNN:
    """The demo network in eval mode, float32; its weights are stored as float16.

    Its input is (x - DEMO_MEAN) / DEMO_STD for RGB images x [N, 3, 32, 32] in [0, 1]; its scores [N, 10] stand for
    ``CLASSES``.

    Raises:
        FileNotFoundError: the weights are not beside this module.

    >>> from fastxai.models import demo, DEMO_MEAN, DEMO_STD
    >>> net = fastxai.compile(demo(), mean=DEMO_MEAN, std=DEMO_STD)
    """
    if not WEIGHTS.is_file():
        raise FileNotFoundError(f"{WEIGHTS} must hold the demo network's weights: examples/train_demo.py makes them")
    model = CNN()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()
