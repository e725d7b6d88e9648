"""What a student's features are worth on other tasks: fine-tuned, as a linear probe and by nearest neighbors.

    python -m must.main --config=configs/transfer.py:upstream --workdir=runs/upstream
    python -m must.main --config=configs/transfer.py:scenes --config.root=runs/upstream --workdir=runs/transfer

`upstream` trains, for three seeds, what `scenes` starts from: teachers, the student, the supervised network, and a
student whose labels are shuffled, which should be worth nothing.
"""

from ml_collections import ConfigDict

from configs import quickstart
from must.recipes.table import complete

SEEDS = (0, 1, 2)


def get_config(variant: str = "scenes") -> ConfigDict:
    """The configuration of a variant."""
    variants = {"upstream": upstream}
    if variant not in variants:
        raise ValueError(f"no variant {variant!r} of transfer: {', '.join(variants)}")
    return complete(variants[variant]())


def upstream() -> ConfigDict:
    """The quickstart with three seeds and a student whose labels are shuffled."""
    config = quickstart.base()
    config.title, config.seeds = "What transfer starts from", SEEDS
    config.pool.pool.count = 2048
    config.arms = {"shuffled": {"shuffled_labels": True}}
    return config
