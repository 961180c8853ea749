"""Downloads from the Hugging Face hub, of the needed files alone."""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from jaxae import _checks

_PREFIX = "hf://"
# owner/repo, owner/repo@revision, owner/repo/folder, owner/repo@revision/folder
_ID = re.compile(
    r"(?P<repo>\w[\w.-]*/\w[\w.-]*)(?:@(?P<revision>[^/]+))?(?:/(?P<folder>.+?))?/?"
)


class HubId(NamedTuple):
    """A folder of a repository of the hub."""

    repo: str
    revision: str | None
    folder: str  # "" for the root


def parse(source: str) -> HubId | None:
    """The hub id "owner/repo[@revision][/folder]", with or without "hf://"."""
    match = _ID.fullmatch(source.removeprefix(_PREFIX))
    if match is None or ".." in source.split("/"):
        return None
    return HubId(match["repo"], match["revision"], match["folder"] or "")


def download(source: str, patterns: Iterable[str]) -> Path:
    """The folder of the hub's cache that holds the files of these names.

    Raises:
      ImportError: if huggingface_hub is not installed.
      ValueError: if the repository cannot be read.
    """
    hub_id = parse(source)
    if hub_id is None:
        raise _checks.ArgumentError(
            "source",
            "must be a folder, a file, or a hub id such as 'owner/repo/folder'",
            repr(source),
        )
    try:
        import huggingface_hub
    except ImportError as error:
        feature = f"{source!r} is not a file or folder here; reading it from the hub"
        raise _checks.extra(feature, "huggingface_hub", "formats") from error
    prefix = f"{hub_id.folder}/" if hub_id.folder else ""
    try:
        folder = huggingface_hub.snapshot_download(
            hub_id.repo,
            revision=hub_id.revision,
            allow_patterns=[prefix + pattern for pattern in patterns],
        )
    except Exception as error:  # of the network, the hub or its cache: a dozen types
        raise _checks.ArgumentError(
            "source",
            f"is not a file or folder here, and the repository {hub_id.repo!r} of the "
            f"hub cannot be read ({_checks.first_line(error)})",
            repr(source),
        ) from error
    return Path(folder, hub_id.folder)
