"""Weights in files come back as they were, and whatever cannot be meant is refused by its place."""

import numpy as np
import pytest

from must.core.types import UserError
from must.data.weights import read_weights, write_weights


@pytest.mark.parametrize("name", ["weights.csv", "weights.json"])
def test_round_trip_is_exact(tmp_path, name):
    rng = np.random.default_rng(0)
    ids = ["pool/é 1", 'a,"b"', " padded ", "pool/2"]
    weights = {
        task: dict(zip(ids, rng.gamma(1.0, size=4).astype(dtype), strict=False))
        for task, dtype in (("a", "f4"), ("b", "f8"))
    }
    weights["b"]["pool/2"] = 0
    write_weights(tmp_path / name, weights)
    assert read_weights(tmp_path / name) == {t: {id: float(w) for id, w in by.items()} for t, by in weights.items()}


def test_a_table_from_a_spreadsheet_is_read(tmp_path):
    (tmp_path / "w.csv").write_bytes(
        "\ufeffweight,id,task\r\n0.5,a,depth\r\n2,b,depth\r\n\r\n1e-3,a,normals\r\n".encode()
    )
    assert read_weights(tmp_path / "w.csv") == {"depth": {"a": 0.5, "b": 2.0}, "normals": {"a": 0.001}}


@pytest.mark.parametrize(
    "content, message",
    [
        ("id,task,weihgt\n", "w.csv:1: columns id, task, weihgt, expected id, task, weight"),
        ("", "w.csv: empty file"),
        ("id,task,weight\na,depth,1\nb,depth,heavy\n", "w.csv:3: weight 'heavy' is not a number"),
        ("id,task,weight\na,depth,\n", "w.csv:2: weight '' is not a number"),
        ("id,task,weight\na,depth,-0.1\n", "w.csv:2: weight -0.1 is not a finite number >= 0"),
        ("id,task,weight\na,depth,nan\n", "w.csv:2: weight nan is not"),
        ("id,task,weight\na,depth,inf\n", "w.csv:2: weight inf is not"),
        ("id,task,weight\na,depth,1\na,normals,1\n\na,depth,2\n", "w.csv:5: 'a' already has a weight for depth"),
        ("id,task,weight\na,depth\n", "w.csv:2: expected 3 columns"),
        ("id,task,weight\na,b,depth,1\n", "w.csv:2: expected 3 columns"),
        ('id,task,weight\n"a"b,depth,1\n', "w.csv:2: "),
        ('{"depth": {"a": 1, "a": 2}}', "w.json: duplicate key 'a'"),
        ('{"depth": {"a": "x"}}', "w.json: depth: a: weight 'x' is not a number"),
        ('{"depth": {"a": -1}}', "w.json: depth: a: weight -1 is not a finite"),
        ('{"depth": {"a": [1]}}', "w.json: depth: a: weight \\[1\\] is not"),
        ('{"depth": 1}', "w.json: expected {task: {id: weight}}"),
        ('{"depth": ', "w.json: invalid json"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_its_place(tmp_path, content, message):
    path = tmp_path / ("w.json" if content.startswith("{") else "w.csv")
    path.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        read_weights(path)
    assert "\n" not in str(error.value)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match="nothing.csv: No such file"):
        read_weights(tmp_path / "nothing.csv")
