"""The small convolutional networks: that of [R], and one for the two-layer network of [F]."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from torch import nn

from fastxai._check import require

__all__ = ["CNN", "MNISTCNN"]


class CNN(nn.Sequential):
    """The CIFAR-10 network: four 3x3 convolutions, two max-pools, two dense layers; 1,116,970 parameters.

    Args:
        activation: makes one activation module; called once for each of the five places.
        classes: the number K of scores.

    Raises:
        TypeError: the activation factory is not callable.
        ValueError: fewer than one class.

    Input [N, 3, 32, 32], normalised by the caller; output [N, K] scores before the softmax. [R] fig. 11.

    >>> from fastxai.models import CNN
    >>> softplus = CNN(lambda: torch.nn.Softplus(beta=10))
    >>> softplus(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """

    def __init__(self, activation: Callable[[], nn.Module] = nn.ReLU, classes: int = 10) -> None:
        require(callable(activation), "activation", "be a callable that makes a module", activation, TypeError)
        require(classes >= 1, "classes", "be at least 1", classes)
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(3, 32, 3, padding=1),
                act1=activation(),
                conv2=nn.Conv2d(32, 32, 3, padding=1),
                act2=activation(),
                pool1=nn.MaxPool2d(2),
                conv3=nn.Conv2d(32, 64, 3, padding=1),
                act3=activation(),
                conv4=nn.Conv2d(64, 64, 3, padding=1),
                act4=activation(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                linear1=nn.Linear(64 * 8 * 8, 256),
                act5=activation(),
                linear2=nn.Linear(256, classes),
            )
        )


class MNISTCNN(nn.Sequential):
    """The network for MNIST and Fashion-MNIST: two 5x5 convolutions, each with a max-pool, two dense layers.

    [F] trains "a two-layer convolutional neural network" and says no more; the sizes are ours. 3,274,634 parameters.

    Args:
        activation: makes one activation module; called once for each of the three places.
        classes: the number K of scores.

    Raises:
        TypeError: the activation factory is not callable.
        ValueError: fewer than one class.

    Input [N, 1, 28, 28], in [0, 1] or normalised by the caller; output [N, K] scores before the softmax. [F] section 5.

    >>> from fastxai.models import MNISTCNN
    >>> MNISTCNN()(torch.zeros(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """

    def __init__(self, activation: Callable[[], nn.Module] = nn.ReLU, classes: int = 10) -> None:
        require(callable(activation), "activation", "be a callable that makes a module", activation, TypeError)
        require(classes >= 1, "classes", "be at least 1", classes)
        super().__init__(
            OrderedDict(
                conv1=nn.Conv2d(1, 32, 5, padding=2),
                act1=activation(),
                pool1=nn.MaxPool2d(2),
                conv2=nn.Conv2d(32, 64, 5, padding=2),
                act2=activation(),
                pool2=nn.MaxPool2d(2),
                flatten=nn.Flatten(),
                linear1=nn.Linear(64 * 7 * 7, 1024),
                act3=activation(),
                linear2=nn.Linear(1024, classes),
            )
        )
