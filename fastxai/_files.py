"""Files that are written whole: whoever looks finds the old one or the new one, and no half of either."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["write_tensors", "written_aside"]


@contextmanager
def written_aside(file: str | Path) -> Iterator[Path]:
    """Give a path to write to, which becomes ``file`` once all went well; its folder is made if missing.

    The path ends in .part, whatever ``file`` ends in: nobody takes it for one of the files of its folder.
    """
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    aside = file.with_name(f".{file.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.part")
    try:
        yield aside
        # Unflushed, a renamed file may be empty after a power cut.
        with aside.open("rb") as written:
            os.fsync(written.fileno())
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)


def write_tensors(file: str | Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Write a .safetensors; tensors that share memory, which the format does not know, are written out each.

    Raises:
        OSError: the folder does not take the file.
    """
    copies: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        whole = tensor.detach().cpu().contiguous()
        storage = whole.untyped_storage().data_ptr()
        copies[name] = whole.clone() if storage in seen else whole
        seen.add(storage)
    with written_aside(file) as aside:
        aside.touch()
        mode = aside.stat().st_mode
        try:
            save_file(copies, aside, metadata)
        except SafetensorError as error:
            # So it calls a full disk.
            raise OSError(str(error)) from error
        # It makes files that their owner alone may read; those of others are as the umask has them.
        aside.chmod(mode)
