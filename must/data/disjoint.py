"""Whether sets that must have nothing in common have nothing in common."""

import hashlib
from collections.abc import Mapping

import numpy as np

from must.core.types import Source, UserError
from must.data.combine import encoded_of


def check_disjoint(sources: Mapping[str, Source], *, by_content: bool = False) -> None:
    """Refuses sets that share an example.

    Args:
      sources: {what it is used for: source}, as messages name it.
      by_content: compare the pictures too, not only the ids: files by their bytes, made pictures by their pixels.

    Raises:
      UserError: an id or a picture that two of them hold.
    """
    owner: dict[str, tuple[str, str]] = {}
    for use, source in sources.items():
        for i, id in enumerate(source.ids):
            keys = [f"id {id}", *([_content(source, i)] if by_content else [])]
            for key in keys:
                other, its_id = owner.setdefault(key, (use, id))
                if other != use:
                    what = f"share {id}" if its_id == id else f"hold the same picture, {its_id} and {id}"
                    raise UserError(f"the {other} and the {use} set {what}: they must be disjoint")


def _content(source: Source, index: int) -> str:
    file = encoded_of(source, index)
    if file is None:
        file = np.ascontiguousarray(source[index].image).tobytes()
    return "sha256 " + hashlib.sha256(file).hexdigest()
