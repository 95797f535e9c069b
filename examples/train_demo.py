"""Train the demo network on CIFAR-10: python examples/train_demo.py --data FOLDER.

Started again, it goes on after the last epoch that it finished. The weights in the package were made with these
settings by an earlier form of this script, which drew order and crops from another generator: the same network, batch,
schedule and number of epochs, but other random numbers, so a new run does not end with the same weights.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

import fastxai
from fastxai.data import cifar10
from fastxai.evaluation import accuracy
from fastxai.models import CNN, DEMO_MEAN, DEMO_STD, initialise
from fastxai.models.demo import WEIGHTS
from fastxai.training import CrossEntropy, Dataset, FitConfig, Objective, fit


def right(model: nn.Module, test: Dataset) -> float:
    """Share of the test images whose highest score is their label's."""
    model.eval()
    return accuracy(lambda numbers: model(test.plain(numbers)), torch.arange(len(test)), test.labels, chunk=500)


def train(arguments: argparse.Namespace, test: Dataset) -> nn.Module:
    """Train for the epochs that are still to do; print one line for each."""
    images, labels = cifar10(arguments.data, "train")
    data = Dataset(images, labels, DEMO_MEAN, DEMO_STD, pad=4, flip=True)
    config = FitConfig(epochs=arguments.epochs, lr=arguments.lr, weight_decay=5e-4, seed=arguments.seed)
    torch.manual_seed(config.seed)
    # oneDNN's convolutions are several times faster in this layout.
    model = initialise(CNN(), "he_normal").to(memory_format=torch.channels_last)

    def measure(_: Objective) -> dict[str, float]:
        share = right(model, test)
        print(f"test accuracy {100 * share:.2f} %", flush=True)
        return {"accuracy": share}

    fit(Objective(fastxai.compile(model), [CrossEntropy()]), data, config, out=arguments.checkpoints, measure=measure)
    return model


def main() -> None:
    """Train, write the weights as float16, and print the accuracy of what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--lr", type=float, default=0.05, help="the schedule's highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoints", type=Path, default=Path("train_demo"), help="folder of checkpoints and log")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="the weights (default: those in the package)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    test = Dataset(*cifar10(arguments.data, "test"), DEMO_MEAN, DEMO_STD)
    model = train(arguments, test)
    save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, arguments.out)
    model.load_state_dict(load_file(arguments.out))
    size = arguments.out.stat().st_size / 1e6
    print(f"float16 weights: test accuracy {100 * right(model, test):.2f} %, {size:.2f} MB")


if __name__ == "__main__":
    main()
