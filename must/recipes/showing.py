"""The jobs that show labels to people and other tools: their quality where the truth is known, a gallery, files."""

from collections.abc import Mapping
from typing import Any

from must.recipes.jobs import Job


def pages_of_labels(config: Mapping[str, Any], seed: int, at: str) -> list[Job]:
    """The jobs that a configuration asks for, once the labels of the seed whose directories begin with `at` are there."""
    return []
