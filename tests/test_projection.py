"""The projection of a large run against what can be computed by hand."""

import importlib.util
import math
from dataclasses import replace
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("projection", Path(__file__).parents[1] / "launch" / "projection.py")
projection = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(projection)
STAGES = {"label": projection.label, "train": projection.train}
# Nothing fails, nothing costs anything beside the work itself.
IDEAL = replace(
    projection.Plan(), images=4096 * 1000.0, faults=0.0, shard_seconds=0.0, start_seconds=0.0, save_seconds=0.0
)


@pytest.mark.parametrize("stage", STAGES)
def test_an_undisturbed_run_takes_its_operations_over_what_the_chips_reach(stage):
    flops = {"label": IDEAL.label_flops * IDEAL.mfu_label**-1, "train": IDEAL.train_flops * IDEAL.mfu_train**-1}[stage]
    found = STAGES[stage](IDEAL, 40)  # 10 hosts, 100 shards each; 3,200 steps
    assert found.hours == pytest.approx(IDEAL.images * flops / (40 * IDEAL.peak) / 3600)
    assert found.parts["device"] == pytest.approx(1) and found.limit == "device"


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("change", "limit"),
    [
        ({"host_rows": 1.0}, "decoding"),
        ({"host_bandwidth": 1e5}, "network of a host"),
        ({"store_bandwidth": 1e6}, "bandwidth of the store"),
        ({"store_requests": 0.01}, "requests to the store"),
    ],
)
def test_the_slowest_part_sets_the_pace(stage, change, limit):
    found, twice = (
        STAGES[stage](replace(IDEAL, **{key: value * factor for key, value in change.items()}), 40) for factor in (1, 2)
    )
    assert found.limit == limit
    assert found.hours == pytest.approx(2 * twice.hours, rel=1e-6)
    # What waits and what computes add up to the whole.
    assert sum(found.parts.values()) == pytest.approx(1) and found.parts["waiting"] > 0.9


def test_more_chips_wait_longer_for_one_another():
    slow = replace(IDEAL, link=1e6)
    assert projection.train(slow, 40).limit == "all-reduce"
    assert projection.train(slow, 80).hours == pytest.approx(projection.train(slow, 40).hours / 2, rel=0.02)


def test_faults_cost_what_theory_says():
    # Attempts of s seconds under faults of rate r take (exp(r s) - 1) / r on average until one ends.
    def wasted(rate, seconds):
        return (math.exp(rate * seconds) - 1) / rate - seconds

    shard = projection.label(replace(IDEAL, images=4096.0), 4).hours * 3600
    often = replace(IDEAL, faults=0.3 / shard * 3600 / IDEAL.chips_per_host)
    runs = [projection.label(often, 40, seed) for seed in range(20)]
    lost = sum(run.parts["lost work"] * 10 * run.hours * 3600 for run in runs) / 20
    assert lost == pytest.approx(1000 * wasted(0.3 / shard, shard), rel=0.1)
    # In training each fault also costs everyone the notice and a restart.
    whole = projection.train(IDEAL, 40).hours * 3600
    period, rate = whole / 1000, 0.3 / (whole / 1000)
    often = replace(
        IDEAL, save_every=period, faults=rate * 3600 / 40, patience=0.7 * period, start_seconds=0.5 * period
    )
    hours = sum(projection.train(often, 40, seed).hours for seed in range(20)) / 20
    each = wasted(rate, period) + (math.exp(0.3) - 1) * 1.2 * period
    assert hours * 3600 - whole == pytest.approx(1000 * each, rel=0.1)


def test_impossible_parameters_are_refused():
    with pytest.raises(ValueError, match="--peak=0.0: must be positive"):
        replace(IDEAL, peak=0.0)
    with pytest.raises(
        ValueError, match="one every 3 s, so that the time between two checkpoints, 600 s, never passes"
    ):
        projection.train(replace(IDEAL, faults=30.0), 40)
    with pytest.raises(ValueError, match="--chips=5: a multiple of chips_per_host=4"):
        projection.label(IDEAL, 5)
