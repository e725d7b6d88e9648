"""The transfer suite: every start under every protocol in one table; shares, rates and starts are what they say."""

import json

import jax
import numpy as np
import pytest

from must.core.types import UserError
from must.experiment import build, networks, sections
from must.experiment import transfer as suite
from must.experiment.transfer import Nearest
from tests.support.configs import changed, check, config_of, run, settings_of


def _config(**changes):
    """One task, random numbers and SimCLR, fine-tuned at two rates and by nearest neighbors."""
    config = config_of("configs/transfer.py", "sanity")
    for section in ("tasks", "sets", "train_sets"):
        config[section] = {"material": config[section]["material"]}
    return changed(config, **{"protocols": ("finetune", "knn"), "labels": (0.25, 1.0), "workers": 1, **changes})


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("transfer")
    run(_config(labels=(1.0,)), folder)
    return folder


def test_every_start_has_a_score_under_every_protocol(workdir):
    results = json.loads((workdir / "results.json").read_text())
    names = {f"{start} {protocol} 100%" for start in ("random", "simclr") for protocol in ("finetune", "knn")}
    assert set(results["columns"]) == {"guess", *names}
    assert {one["name"] for one in results["contrasts"]} >= {
        "simclr vs random, fine-tuned",
        "simclr vs random, nearest neighbors",
    }
    notes = " ".join(results["notes"])
    assert "Learning rates chosen on the validation split" in notes and "100% of the labels" in notes
    assert "labels" not in json.dumps(results["axes"])
    assert (workdir / "report.html").exists()


def test_the_rate_is_the_best_on_the_validation_split(workdir):
    job = workdir / "finetune" / "simclr" / "material"
    chosen = json.loads((job / "done.json").read_text())
    each = {name: json.loads((job / name / "done.json").read_text()) for name in ("rate-0.001", "rate-0.004")}
    best = max(each.values(), key=lambda one: one["validation"]["material"])
    assert chosen["test"] == each[chosen["network"]]["test"]
    assert chosen["validation"]["material"] == best["validation"]["material"]
    assert {one["learning_rate"] for one in each.values()} == {0.001, 0.004}


def test_pretraining_is_where_networks_start(workdir):
    settings = settings_of(_config())
    trained = networks.load(str(workdir / "self_supervised"))
    init = suite.init_of(settings, "simclr", "material", str(workdir / "self_supervised"))
    model, network, inputs = suite._network(settings, settings.finetune, "material")
    fresh, started = (
        suite.initial.start(model, network, inputs, jax.random.key(5), one) for one in (suite.Init(), init)
    )
    for name in ("backbone", "neck"):
        same = [
            np.array_equal(a, b)
            for a, b in zip(*(jax.tree.leaves(tree["params"][name]) for tree in (fresh, started)), strict=True)
        ]
        assert all(same) == (name == "neck")
    a, b = (jax.tree.leaves(tree["params"]["backbone"]) for tree in (trained.variables, started))
    assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


def test_larger_shares_contain_smaller_ones_and_seeds_differ():
    settings = settings_of(_config())
    ids = {share: set(suite.annotated(settings, "material", share, 0).ids) for share in (0.25, 0.5, 1.0)}
    assert [len(one) for one in ids.values()] == [8, 16, 32] and ids[0.25] < ids[0.5] < ids[1.0]
    assert set(suite.annotated(settings, "material", 0.25, 1).ids) != ids[0.25]


def test_nearest_neighbors_are_those_of_scikit_learn():
    from sklearn.neighbors import KNeighborsClassifier

    rng = np.random.default_rng(0)
    bank, asked, classes = rng.normal(size=(60, 5)), rng.normal(size=(20, 5)), rng.integers(0, 4, 60)
    referee = KNeighborsClassifier(
        7, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.2)
    ).fit(bank, classes)
    mine = suite.neighbors(bank.astype(np.float32), classes, 4, Nearest(7, 0.2))(asked.astype(np.float32))
    np.testing.assert_allclose(mine, referee.predict_proba(asked), atol=2e-5)


def test_a_probe_leaves_the_backbone_alone():
    settings = settings_of(_config(protocols=("probe",)))
    model, _, inputs = suite._network(settings, settings.probe, "material")
    assert set(model.init(jax.random.key(0), inputs)["params"]) == {"neck", "heads_material"}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"subject": "must"}, "config.subject='must': not one of the starts random, simclr"),
        ({"starts": {}}, "config.starts: at least one"),
        ({"labels": (0.0,)}, r"config.labels=\(0.0,\): shares above 0"),
        ({"learning_rates": (-1.0,)}, "config.learning_rates=.*must be positive"),
        ({"starts__random__tasks": {"depht": "a"}}, "config.starts.random.tasks.depht: no such task"),
        (
            {"starts__random__init": {"weights": "none.safetensors"}},
            "config.starts.random: init.weights=.none.safetensors.: No such file",
        ),
        ({"starts__simclr__init": {"weights": "a"}}, "config.starts.simclr.self_supervised: has weights of its own"),
        ({"protocols": ("probe",), "probe__model": {"backbone": {"frozen": 0}}}, "config.probe.model.backbone.frozen"),
        ({"finetune__init": {"weights": "x"}}, "config.finetune"),
        ({"knn__neighbors": 0}, "config.knn.neighbors=0"),
    ],
)
def test_mistakes_are_one_line_that_names_the_key(changes, message):
    with pytest.raises(UserError, match=f"^{message}"):
        check(_config(**changes))


def test_a_task_may_start_from_its_own_weights():
    settings = settings_of(
        _config(starts__random__tasks={"material": "b"}, starts__random__init={"partial": ("heads_",)})
    )
    assert suite.init_of(settings, "random", "material", "") == suite.Init("b", ("heads_",))
    # A workdir remembers the content of all of them.
    both = changed(_config(), starts__random__tasks={"material": "b"}, starts__random__init={"weights": "a"})
    assert set(suite.initial._weights(sections.plain(settings_of(both)))) == {"a", "b"}
    assert build.tasks_of(settings)["material"].classes == ("matte", "patterned", "metallic")
