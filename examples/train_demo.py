"""Train the demo network on CIFAR-10: python examples/train_demo.py --data FOLDER.

Saves after every epoch and goes on from there when started again. Crops, flips and order are keyed by (seed, epoch).
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from fastxai.data import cifar10
from fastxai.models import CNN
from fastxai.models.demo import DEMO_MEAN, DEMO_STD, WEIGHTS

BATCH = 128
PAD = 4


def normalise(images: Tensor) -> Tensor:
    """Normalised float32 [N, 3, H, W] from uint8 of the same shape; channels-last memory is kept."""
    mean, std = (torch.tensor(value).view(1, 3, 1, 1) for value in (DEMO_MEAN, DEMO_STD))
    return (images.float() / 255 - mean) / std


def augmented(padded: Tensor, index: Tensor, generator: torch.Generator) -> Tensor:
    """Random 32x32 crops, half of them mirrored: uint8 [N, 3, 32, 32] from rows of padded [M, 40, 40, 3]."""
    count, steps = len(index), torch.arange(32)
    top, left = torch.randint(0, 2 * PAD + 1, (2, count, 1), generator=generator)
    mirror = torch.rand(count, 1, generator=generator) < 0.5
    rows = top + steps
    columns = left + torch.where(mirror, 31 - steps, steps)
    return padded[index[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Fraction of the images [N, 3, 32, 32] whose highest score is their label's."""
    model.eval()
    right = [
        (model(normalise(x)).argmax(1) == y).sum() for x, y in zip(images.split(500), labels.split(500), strict=True)
    ]
    return int(torch.stack(right).sum()) / len(labels)


def rate(progress: float, peak: float) -> float:
    """Learning rate of the one-cycle schedule: a quarter of the way up to the peak in a line, then a cosine to zero."""
    return peak * (progress / 0.25 if progress < 0.25 else (1 + math.cos(math.pi * (progress - 0.25) / 0.75)) / 2)


def start(seed: int) -> CNN:
    """The untrained network; He's initialisation, since four layers without batch norm shrink PyTorch's own."""
    torch.manual_seed(seed)
    model = CNN().to(memory_format=torch.channels_last)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
        else:
            nn.init.zeros_(parameter)
    return model


def save(tensors: dict[str, Tensor], file: Path) -> None:
    """Write the file aside, then rename it: a reader finds the old one or the new one, whole."""
    aside = file.with_name(file.name + ".part")
    save_file({name: value.detach().contiguous() for name, value in tensors.items()}, aside)
    aside.replace(file)


def train(arguments: argparse.Namespace) -> nn.Module:
    """Train for the epochs that are still to do; print one line for each."""
    images, labels = cifar10(arguments.data, "train")
    test_images, test_labels = cifar10(arguments.data, "test")
    padded = functional.pad(images.permute(0, 2, 3, 1), (0, 0, PAD, PAD, PAD, PAD))

    model, done = start(arguments.seed), 0
    optimiser = torch.optim.SGD(model.parameters(), lr=arguments.lr, momentum=0.9, nesterov=True, weight_decay=5e-4)
    if arguments.checkpoint.exists():
        saved = load_file(arguments.checkpoint)
        done = int(saved.pop("epochs"))
        for name, parameter in model.named_parameters():
            parameter.data.copy_(saved[name])
            optimiser.state[parameter]["momentum_buffer"] = saved[f"momentum.{name}"].to(
                memory_format=torch.channels_last if parameter.dim() == 4 else torch.contiguous_format
            )

    steps = len(labels) // BATCH
    for epoch in range(done, arguments.epochs):
        began, total = time.perf_counter(), torch.zeros(())
        generator = torch.Generator().manual_seed(arguments.seed * 1000 + epoch)
        order = torch.randperm(len(labels), generator=generator)[: steps * BATCH].view(steps, BATCH)
        model.train()
        for step, index in enumerate(order):
            optimiser.param_groups[0]["lr"] = rate((epoch + step / steps) / arguments.epochs, arguments.lr)
            x = normalise(augmented(padded, index, generator))
            loss = functional.cross_entropy(model(x), labels[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.detach()
        seconds = time.perf_counter() - began
        momenta = {f"momentum.{name}": optimiser.state[p]["momentum_buffer"] for name, p in model.named_parameters()}
        save({**model.state_dict(), **momenta, "epochs": torch.tensor(epoch + 1)}, arguments.checkpoint)
        print(
            f"epoch {epoch + 1}/{arguments.epochs}: loss {float(total) / steps:.4f}, "
            f"test accuracy {100 * accuracy(model, test_images, test_labels):.2f} %, {seconds:.0f} s",
            flush=True,
        )
    return model


def main() -> None:
    """Train, write the weights as float16, and print the accuracy of what was written."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10")
    parser.add_argument("--epochs", type=int, default=14)
    parser.add_argument("--lr", type=float, default=0.05, help="the schedule's highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--checkpoint", type=Path, default=Path("train_demo.safetensors"))
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    model = train(arguments)
    save({name: value.half() for name, value in model.state_dict().items()}, arguments.out)
    model.load_state_dict(load_file(arguments.out))
    final = accuracy(model, *cifar10(arguments.data, "test"))
    print(f"float16 weights: test accuracy {100 * final:.2f} %, {arguments.out.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
