"""Label spaces of motions: which action a clip has, and which one it has when it is mirrored or played backwards."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def opposites(motions: Mapping[str, Any], fields: Sequence[str]) -> dict[str, str]:
    """{action: action whose motion has the opposite sign in these fields}, of the actions for which it is another one.

    Args:
      motions: {action: named tuple of numbers}.
      fields: of the tuples.
    """
    names = {motion: name for name, motion in motions.items()}
    turned = {
        name: motion._replace(**{field: -getattr(motion, field) for field in fields})
        for name, motion in motions.items()
    }
    return {name: names[motion] for name, motion in turned.items() if names[motion] != name}


def balanced(place: int, count: int, key: Callable[[int], str]) -> int:
    """The class of an example: each of `count` classes once in every block of as many examples, in random order.

    Args:
      place: of the example.
      count: number of classes.
      key: (number of the block) -> what its order is drawn from.
    """
    shuffled = hashlib.shake_128(key(place // count).encode()).digest(count)
    return sorted(range(count), key=shuffled.__getitem__)[place % count]
