"""Upload of a timm folder to the Hugging Face hub."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from disk_kd.errors import ConfigError, RunError, one_line

_NAME = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}")


@dataclass(frozen=True)
class Pushed:
    """What was uploaded, or would be.

    Attributes:
        url: address of the repository.
        files: names and sizes in bytes of the files.
        done: whether it was uploaded; False after a dry run.
    """

    url: str
    files: dict[str, int]
    done: bool


def check_name(name: str) -> None:
    """Check that a name is a repository's.

    Raises:
        ConfigError: it is not.
    """
    if not _NAME.fullmatch(name) or ".." in name or "--" in name:
        raise ConfigError(f"{name!r} is not the name of a repository; give USER/NAME")


def push(folder: Path, name: str, *, private: bool = False, dry_run: bool = False) -> Pushed:
    """Upload a timm folder to the hub, with the token of `hf auth login` or of the variable HF_TOKEN.

    Args:
        folder: what `export` wrote with the format timm.
        name: USER/NAME. The repository is created if there is none.
        private: create it for its owner only.
        dry_run: list the files and reach no network.

    Raises:
        ConfigError: the name is none.
        RunError: the hub cannot be reached or refuses the files.
    """
    check_name(name)
    files = {path.name: path.stat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    from huggingface_hub import HfApi  # here, because it takes a second to import

    api = HfApi()
    url = f"{api.endpoint}/{name}"
    if dry_run:
        return Pushed(url, files, done=False)
    try:
        api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, allow_patterns=list(files), commit_message="Upload by disk-kd"
        )
    except Exception as error:  # the client raises errors of its HTTP library and of its own
        raise RunError(
            f"cannot push to {url} ({one_line(error)}); {folder} is complete: log in with hf auth login, or upload it"
            f" with hf upload {name} {folder}"
        ) from None
    return Pushed(url, files, done=True)
