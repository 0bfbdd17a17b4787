"""Find a saved model: a folder here, or a repository of the Hugging Face Hub."""

from __future__ import annotations

import os
from pathlib import Path

from fxprune.errors import FileError, first_line
from fxprune.result.saved.folder import PREPROCESSOR, RECORD, WEIGHTS

__all__ = ["HUB", "local_folder"]

HUB = "hf-hub:"


def local_folder(source: str | os.PathLike[str]) -> Path:
    """Return a folder as it is; `hf-hub:owner/name[@revision]` as the folder that it is downloaded to.

    Raises:
        FileError: there is no such folder or repository.
    """
    text = os.fspath(source)
    if text.startswith(HUB):
        return _snapshot(text.removeprefix(HUB))
    folder = Path(text)
    if not folder.is_dir():
        raise FileError(f"there is no folder {text}; for a repository of the Hub write {HUB}owner/name")
    return folder


def _snapshot(name: str) -> Path:
    """Fetch the files that stand in a saved folder, unless the cache has them."""
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    except ImportError as error:
        raise FileError(
            f"{HUB}{name} needs the package huggingface_hub: pip install huggingface_hub"
        ) from error
    repository, _, revision = name.partition("@")
    try:
        files = [RECORD, WEIGHTS, PREPROCESSOR]
        folder = snapshot_download(repository, revision=revision or None, allow_patterns=files)
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        raise FileError(f"{HUB}{name} can't be fetched: {first_line(error)}") from error
    return Path(folder)
