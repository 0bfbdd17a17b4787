"""The folder on disk: `model.safetensors` and `fxprune.json`, which always fit each other.

Two files can't be replaced in one step.  The record names its weights by digest, and the order is:

    1  the new weights appear whole, as PENDING (their digest is in the name)
    2  the record is replaced                      from here on the folder is the new one
    3  PENDING is renamed to model.safetensors

A kill before 2 leaves the old pair; a kill between 2 and 3 a record whose weights are still PENDING, which
is where `read_tensors` looks first.  One process at a time may write a folder; any number may read it.
Where `preprocessor_config.json` is written with them, the record names its digest and that of the one before,
and it takes the same three steps; `settle_images` takes the last one after a kill.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from fxprune.errors import FileError
from fxprune.result.files import TEMPORARY, write_whole
from fxprune.result.fingerprint import json_digest
from fxprune.result.json_types import FolderRecord, StoredImages, StoredWeights
from fxprune.result.saved.checked_record import check_files

__all__ = [
    *("FORMAT", "PREPROCESSOR", "RECORD", "WEIGHTS", "Images"),
    *("read_record", "read_tensors", "settle_images", "write_folder"),
]

FORMAT = "fxprune-2"
OLD_FORMATS = ("fxprune-1",)  # read, and written no more
RECORD = "fxprune.json"
WEIGHTS = "model.safetensors"
PREPROCESSOR = "preprocessor_config.json"  # of Hugging Face: what is done to images; may stand beside them
PENDING = ".fxprune-{}.safetensors"
PENDING_IMAGES = ".fxprune-{}.json"


@dataclass(frozen=True)
class Images:
    """What `preprocessor_config.json` is to say; None where there is to be no such file."""

    text: str | None


def write_folder(
    folder: Path, record: FolderRecord, tensors: Mapping[str, Tensor], images: Images | None = None
) -> None:
    """Make the folder hold this record and these tensors, or leave it as it was.

    images: the file that goes with them; by default one that is there stays.

    Raises:
        FileError: the folder can't be made or written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if images is not None:
            record = {**record, "images": _write_pending_images(folder, images)}
        pending, weights = _write_pending(folder, tensors)
        whole: dict[str, object] = {"format": FORMAT, **record, "weights": weights}
        text = json.dumps({**whole, "digest": json_digest(whole)}, indent=1)
        write_whole(folder / RECORD, text)
        os.replace(pending, folder / WEIGHTS)
        settle_images(folder, record)
        _flush(folder)
        _tidy(folder)
    except OSError as error:
        raise FileError(f"{folder} can't be written: {error}") from error


def settle_images(folder: Path, record: FolderRecord) -> None:
    """Put the file about images in its place, or remove an older one, where a kill left that to be done.

    Raises:
        OSError: it can't be done.
    """
    images, place = record.get("images"), folder / PREPROCESSOR
    if images is None or images["sha256"] == images["instead_of"]:
        return
    pending = folder / PENDING_IMAGES.format(str(images["sha256"])[:16])
    if images["sha256"] is not None and pending.exists():
        os.replace(pending, place)
    elif images["sha256"] is None and place.is_file() and _sha256(place) == images["instead_of"]:
        place.unlink()


def _write_pending_images(folder: Path, images: Images) -> StoredImages:
    place, digest = folder / PREPROCESSOR, None
    if images.text is not None:
        digest = hashlib.sha256(images.text.encode()).hexdigest()
        write_whole(folder / PENDING_IMAGES.format(digest[:16]), images.text)
    return {"sha256": digest, "instead_of": _sha256(place) if place.is_file() else None}


def read_record(folder: Path) -> FolderRecord:
    """Return the record, if it is whole and unedited.  Raises FileError for anything else."""
    path = folder / RECORD
    try:
        record = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise FileError(f"{folder} holds no {RECORD}: it was not written by fxprune.save") from None
    except (OSError, ValueError) as error:
        raise FileError(f"{path} is no whole record: {error}") from error
    if not isinstance(record, dict) or "format" not in record:
        raise FileError(f"{path} is no record of fxprune.save")
    if record["format"] not in (FORMAT, *OLD_FORMATS):
        raise FileError(f"{path} is of format {record['format']!r}; this version of fxprune reads {FORMAT}")
    if record.pop("digest", None) != json_digest(record):
        raise FileError(f"{path} was edited since it was saved: its digest does not fit")
    check_files(record)
    return cast(FolderRecord, record)


def read_tensors(folder: Path, record: FolderRecord, device: str | torch.device) -> dict[str, Tensor]:
    """Return the tensors that a record was saved with, by name.  Raises FileError if they are not those."""
    wanted = record["weights"]
    path = folder / PENDING.format(wanted["sha256"][:16])
    if not path.exists():
        path = folder / WEIGHTS
    try:
        size = path.stat().st_size
        if size != wanted["bytes"]:
            what = "truncated" if size < wanted["bytes"] else "not the file that was saved"
            raise FileError(f"{path} is {what}: it has {size} bytes, and should have {wanted['bytes']}")
        if _sha256(path) != wanted["sha256"]:
            raise FileError(f"{path} was changed since it was saved: its digest does not fit {RECORD}")
        tensors = safetensors.torch.load_file(path, device=str(device))
        # A file's numbers lie anywhere in memory: on some processors unaligned ones round otherwise.
        return {name: t.clone() if t.device.type == "cpu" else t for name, t in tensors.items()}
    except FileNotFoundError:
        raise FileError(f"{folder} holds no {WEIGHTS}") from None
    except (OSError, SafetensorError) as error:
        raise FileError(f"{path} can't be read: {error}") from error


def _write_pending(folder: Path, tensors: Mapping[str, Tensor]) -> tuple[Path, StoredWeights]:
    handle, name = tempfile.mkstemp(dir=folder, prefix=TEMPORARY, suffix=".tmp")
    os.close(handle)
    try:
        safetensors.torch.save_file(dict(tensors), name, metadata={"format": "pt"})
        os.chmod(name, 0o666 & ~_umask())
        _flush(name)
        weights: StoredWeights = {"bytes": os.path.getsize(name), "sha256": _sha256(Path(name))}
        pending = folder / PENDING.format(weights["sha256"][:16])
        os.replace(name, pending)
        _flush(folder)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        raise
    return pending, weights


def _umask() -> int:
    """Read the umask: what takes a temporary file's place should be as readable as any other."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush(path: str | Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _tidy(folder: Path) -> None:
    """Remove what earlier, interrupted writes left."""
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
