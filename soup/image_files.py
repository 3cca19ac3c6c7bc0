"""The files of a folder of images, or of what is told of them."""

from __future__ import annotations

import os
from pathlib import Path

from soup import SoupError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".gif")


def files_below(folder: Path, suffixes: tuple[str, ...] = SUFFIXES) -> list[Path]:
    """Sorted, links followed, hidden files and folders left out; suffixes in capitals count, too.

    Raises SoupError where a folder cannot be read, or is a link to one around it, whose files would come again.
    """
    found: list[Path] = []
    try:
        for parent, folders, names in os.walk(folder, followlinks=True, onerror=_unreadable):
            folders[:] = [name for name in folders if not name.startswith(".")]
            for below in (Path(parent, name) for name in folders):
                if below.is_symlink() and below.resolve() in [above.resolve() for above in below.parents]:
                    raise SoupError(f"{below}: is a link to a folder that it lies in, expected images. Remove it.")
            found += [Path(parent, name) for name in names if _is_one(name, suffixes)]
    except OSError as error:
        raise SoupError(f"{error.filename}: cannot be read: {error.strerror}. Check its permissions.") from error
    return sorted(found)


def _is_one(name: str, suffixes: tuple[str, ...]) -> bool:
    return not name.startswith(".") and name.lower().endswith(suffixes)


def _unreadable(error: OSError) -> None:
    raise error
