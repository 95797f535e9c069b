"""Labelled images as one .npz of numpy, the fastest format to read."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastxai._check import require
from fastxai._files import written_aside
from fastxai.data._common import PARTS, Read, check_labels, numbered

if TYPE_CHECKING:
    from fastxai.data.labelled import Labelled

__all__ = ["read_masks", "read_npz", "save_npz"]


def save_npz(file: str | Path, train: Labelled, test: Labelled) -> Path:
    """Write both parts of a data set as arrays images_train, labels_train, images_test, labels_test and classes.

    A part that has masks gets masks_train or masks_test too.

    The arrays are not compressed, which makes them several times faster to read. A reader sees the old file or the
    whole new one, never a part.

    Args:
        file: where to; its folder is made if missing.
        train: what "npz:FILE" shall give as "train".
        test: what it shall give as "test"; classes, channels and sides as those of ``train``.

    Returns:
        The path written.

    Raises:
        ValueError: the parts do not fit together.

    >>> import tempfile
    >>> from fastxai.data import Labelled, labelled, save_npz
    >>> pets = Labelled(torch.zeros(3, 1, 8, 8, dtype=torch.uint8), torch.tensor([0, 1, 0]), ("cat", "dog"))
    >>> file = save_npz(tempfile.mkdtemp() + "/pets.npz", pets, pets)
    >>> labelled(f"npz:{file}", "test").identity == pets.identity
    True
    """
    require(test.classes == train.classes, "test", f"have the classes of train, {train.classes}", test.classes)
    sides, others = list(train.images.shape[1:]), list(test.images.shape[1:])
    require(others == sides, "test", f"have images of shape {sides}, as train has", others)
    arrays = {"classes": np.array(train.classes, np.str_)}
    for part, of in zip(PARTS, (train, test), strict=True):
        arrays |= {f"images_{part}": of.images.cpu().numpy(), f"labels_{part}": of.labels.cpu().numpy()}
        arrays |= {} if of.masks is None else {f"masks_{part}": of.masks.cpu().numpy()}
    file = Path(file)
    # A stream, since numpy would add .npz to the name of the file aside.
    with written_aside(file) as aside, aside.open("wb") as stream:
        np.savez(stream, **arrays)  # pyright: ignore[reportArgumentType] (a name could be allow_pickle)
    return file


def read_npz(file: Path, part: str) -> Read:
    """Read one part of a file as ``save_npz`` writes it.

    Args:
        file: the .npz; without an array "classes" they are called by their numbers, up to the largest label.
        part: "train" or "test".

    Returns:
        Images uint8 [M, H, W, C], labels of their integer dtype [M], classes.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no whole .npz, an array is missing or of another kind, or a label is out of range.
    """
    wanted = [f"images_{part}", *(f"labels_{one}" for one in PARTS)]
    arrays = _arrays(file, [*wanted, "classes"])
    missing = [name for name in wanted if name not in arrays]
    require(not missing, str(file), f"hold the arrays {', '.join(wanted)}", f"no {', '.join(missing)}")
    images = _array(file, arrays, wanted[0], "u", "uint8 of shape [M, C, H, W]", 4)
    require(images.dtype == np.uint8, f"{wanted[0]} of {file}", "be uint8", images.dtype)
    labels = {name: _array(file, arrays, name, "iu", "integers of shape [M]", 1) for name in wanted[1:]}
    own, own_name = labels[f"labels_{part}"], f"labels_{part} of {file}"
    require(len(own) == len(images), own_name, f"hold {len(images)} labels, one an image", len(own))
    if "classes" in arrays:
        classes = tuple(_array(file, arrays, "classes", "U", "texts of shape [K]", 1).tolist())
    else:
        classes = numbered(np.concatenate(list(labels.values())), f"labels of {file}")
    check_labels(own, own_name, len(classes))
    return images.transpose(0, 2, 3, 1), own, classes


def read_masks(file: Path, part: str) -> np.ndarray | None:
    """Read the masks of one part, bool, uint8 or float32 [M, H, W] or [M, C, H, W]; None if the file has none.

    Raises:
        FileNotFoundError, ValueError: as for ``read_npz``.
    """
    name = f"masks_{part}"
    arrays = _arrays(file, [name])
    if name not in arrays:
        return None
    axes = 3 if getattr(arrays[name], "ndim", 4) == 3 else 4
    found = _array(file, arrays, name, "buf", "bool, uint8 or float32 of shape [M, H, W] or [M, C, H, W]", axes)
    known = found.dtype in (np.bool_, np.uint8, np.float32)
    require(known, f"{name} of {file}", "be bool, uint8 or float32", found.dtype)
    return found


def _arrays(file: Path, names: list[str]) -> dict[str, Any]:
    """Those of the named members that the file has."""
    if not file.is_file():
        raise FileNotFoundError(f"{file} must be an .npz file, but there is no such file")
    contract = f"{file} must be a whole .npz of plain arrays"
    # numpy takes any other file for an array or worse.
    if not zipfile.is_zipfile(file):
        raise ValueError(f"{contract}, got another format or a part of one")
    try:
        with np.load(file, allow_pickle=False) as stored:
            return {name: stored[name] for name in names if name in stored.files}
    # RuntimeError: a file that says of itself that it is encrypted, or packed in a way unknown here.
    except (OSError, ValueError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{contract}, got {error}") from error


def _array(file: Path, arrays: dict[str, Any], name: str, kinds: str, contract: str, axes: int) -> np.ndarray:
    """One array, whose dtype is of one of these kinds."""
    array = arrays[name]
    fits = isinstance(array, np.ndarray) and array.dtype.kind in kinds and array.ndim == axes
    got = f"{array.dtype} of shape {list(array.shape)}" if isinstance(array, np.ndarray) else "no array"
    require(fits, f"{name} of {file}", f"be {contract}", got)
    return array
