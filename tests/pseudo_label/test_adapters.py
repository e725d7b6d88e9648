"""PyTorch modules, ONNX files and functions of JAX label the same images in one pass, each as if asked by itself."""

import hashlib
import inspect
import re
import textwrap

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from must.core.types import LabelError, UserError  # noqa: E402
from must.data.geometry import transform_image, whole_image  # noqa: E402
from must.pseudo_label.adapters import modules  # noqa: E402
from must.pseudo_label.adapters.modules import from_onnx, from_torch  # noqa: E402
from must.pseudo_label.teacher import from_function  # noqa: E402
from must.pseudo_label.write import label_images  # noqa: E402
from must.readers.png_maps import as_uint8  # noqa: E402
from must.readers.records import Records  # noqa: E402
from must.scenes.still import CLASSES, Scenes  # noqa: E402
from must.tasks.classification import Classification  # noqa: E402
from must.tasks.depth import Depth  # noqa: E402
from must.tasks.detection import Detection  # noqa: E402
from must.tasks.segmentation import Segmentation  # noqa: E402
from tests.support.foreign_networks import (  # noqa: E402
    Detector,
    Segmenter,
    read_classifier,
    read_detector,
    read_segmenter,
    write_classifier,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
COUNT, SIDE = 5, 48
TASKS = {
    "segmentation": Segmentation(CLASSES["segmentation"]),
    "detection": Detection(CLASSES["detection"], max_detections=8),
    "classification": Classification(CLASSES["classification"]),
    "depth": Depth(),
}


@jax.jit
def depth_of(images):
    """A teacher of JAX: bright is near; one cell of its map for four pixels."""
    return 1.0 + 5.0 * (1 - images.reshape(len(images), 10, 2, 14, 2, 3).mean((2, 4, 5)) / 255)


def only(*names):
    return {name: TASKS[name] for name in names}


@pytest.fixture(scope="module")
def labeled(tmp_path_factory):
    """(source, directory of records, networks): four teachers of three frameworks and four sizes in one pass."""
    top = tmp_path_factory.mktemp("labeled")
    source, segmenter, detector = Scenes(COUNT, size=SIDE), Segmenter(), Detector()
    weights = write_classifier(top / "classifier.onnx")
    pixels, as_it_is = {"mean": MEAN, "std": STD}, {"mean": (0, 0, 0), "std": (1, 1, 1)}
    teachers = [
        from_torch(
            "segmenter", segmenter, only("segmentation"), size=(60, 70), multiple=32, read=read_segmenter, **pixels
        ),
        from_torch("detector", detector, only("detection"), size=(64, 96), read=read_detector, **as_it_is),
        from_onnx("classifier", top / "classifier.onnx", only("classification"), read=read_classifier, **pixels),
        from_function(
            "depth", lambda images: {"depth": depth_of(images)}, only("depth"), size=(20, 28), fingerprint="1"
        ),
    ]
    assert [teacher.size for teacher in teachers] == [(64, 96), (64, 96), (32, 40), (20, 28)]
    summary = label_images(top / "1.0.0", "labeled", source, teachers, shards=2, batch_size=4)
    assert summary.records == COUNT
    return source, top / "1.0.0", {"segmenter": segmenter, "detector": detector, "weights": weights}


def seen(source, index, size):
    """The picture as a teacher of this size sees it: uint8 [H, W, 3], and its pixels per pixel of the original."""
    image = source[index].image
    return transform_image(image, whole_image(image.shape[:2], size)), min(size[0] / SIDE, size[1] / SIDE)


def tensor(image, mean=MEAN, std=STD):
    pixels = (image.astype(np.float32) / 255 - np.float32(mean)) / np.float32(std)
    return torch.from_numpy(np.moveaxis(pixels, -1, 0)[None])


def enlarged(maps, size):
    """torch's bilinear resize of [1, C, h, w]: [C, *size]."""
    return torch.nn.functional.interpolate(maps, size, mode="bilinear", align_corners=False)[0].numpy()


def test_records_hold_what_each_network_says_of_the_resized_image(labeled):
    source, directory, networks = labeled
    records = Records(directory)
    assert records.specs.keys() == TASKS.keys() and list(records.ids) == list(source.ids)
    boxes_seen = []
    for index in range(COUNT):
        labels = records[index].labels
        image, scale = seen(source, index, (64, 96))
        with torch.no_grad():
            logits, (found,) = networks["segmenter"](tensor(image))["out"], networks["detector"](tensor(image, 0, 1))
        # The middle of a stored pixel, which is four of the original, in the frame.
        probs = enlarged(logits.softmax(1), (64, 96))
        for y, x in ((0, 0), (3, 7), (11, 11), (8, 2)):
            at = probs[:, int((4 * y + 2) * scale), int((4 * x + 2) * scale)]
            assert labels["segmentation"]["ids"][y, x, 0] == at.argmax()
            assert abs(labels["segmentation"]["probs"][y, x, 0] - 255 * at.max()) <= 0.51

        order = np.argsort(-found["scores"].numpy(), kind="stable")
        ranked = found["labels"].numpy()[order]
        order = order[[np.sum(ranked[:i] == label) < 8 for i, label in enumerate(ranked)]]  # eight of each class
        boxes = np.clip(np.clip(found["boxes"].numpy()[order], 0, [96, 64] * 2) / scale, 0, SIDE)
        inside = (boxes[:, 2:] > boxes[:, :2]).all(-1)  # the frame is wider than the picture
        boxes_seen.append((inside.sum(), len(found["scores"])))
        np.testing.assert_allclose(labels["detection"]["boxes"], boxes[inside], atol=1e-4)
        np.testing.assert_array_equal(labels["detection"]["classes"], found["labels"].numpy()[order][inside] - 1)
        np.testing.assert_allclose(labels["detection"]["scores"], found["scores"].numpy()[order][inside], atol=1e-3)

        image, _ = seen(source, index, (32, 40))
        mean = ((image / 255 - MEAN) / STD).mean((0, 1))
        powers = np.exp(mean @ networks["weights"])
        best = np.argsort(-powers)[:5]
        np.testing.assert_array_equal(labels["classification"]["ids"], best)
        np.testing.assert_allclose(labels["classification"]["probs"], powers[best] / powers.sum(), atol=1e-3)

        image, scale = seen(source, index, (20, 28))
        depth = enlarged(torch.from_numpy(np.array(depth_of(image[None])))[:, None], (20, 28))[0]
        stored = labels["depth"]["depth"][5, 9] * labels["depth"]["scale"] + labels["depth"]["offset"]
        assert stored == pytest.approx(depth[int(22 * scale), int(38 * scale)], abs=1e-3)
    inside, found = np.sum(boxes_seen, 0)
    assert 0 < inside < found and len({count for _, count in boxes_seen}) > 1


def test_tfds_reads_the_labels_of_all_frameworks(labeled):
    import tensorflow_datasets as tfds

    _, directory, _ = labeled
    records, read = Records(directory), tfds.builder_from_directory(str(directory)).as_data_source("train")
    assert len(read) == COUNT
    for index in range(COUNT):
        for task, label in records[index].labels.items():
            for name, value in label.items():
                want = as_uint8(value) if records.specs[task][name].encoding == "png" else value
                got = np.asarray(read[index][task][name]).reshape(np.shape(want))
                np.testing.assert_array_equal(got, want, err_msg=f"{task}.{name}")


IMAGES = np.random.default_rng(0).integers(0, 256, (4, 32, 40, 3), np.uint8)
ONNX = {"read": read_classifier, "mean": MEAN, "std": STD}


def probs_of(teacher, images=IMAGES):
    return teacher.predict(images)["classification"]["probs"]


def test_batches_layouts_and_precisions_of_onnx_agree(tmp_path):
    forms = {
        "fixed": {},
        "free": {"shape": ("n", 3, "h", "w")},
        "channels last": {"shape": (None, 32, 40, 3), "layout": "NHWC"},
        "half": {"shape": (1, 3, 32, 40), "element": "FLOAT16"},
    }
    predicted = {}
    for name, form in forms.items():
        path, given = tmp_path / f"{name}.onnx", {"size": (32, 40)} if name == "free" else {}
        write_classifier(path, **form)
        teacher = from_onnx(name, path, only("classification"), layout=form.get("layout", "NCHW"), **given, **ONNX)
        assert teacher.size == (32, 40)
        predicted[name] = probs_of(teacher)
        assert predicted[name].shape == (4, 12) and predicted[name].dtype == np.float32
        np.testing.assert_allclose(predicted[name], predicted["fixed"], atol=5e-3 if name == "half" else 1e-6)
    assert len(np.unique(predicted["fixed"].round(4), axis=0)) == 4
    free = from_onnx("free", tmp_path / "free.onnx", only("classification"), size=(33, 40), multiple=32, **ONNX)
    assert free.size == (64, 64)


def test_what_is_wrong_in_a_later_run_of_a_fixed_batch_is_found_in_its_row(tmp_path):
    write_classifier(tmp_path / "m.onnx", shape=(1, 3, 32, 40))
    calls = []

    def read(outputs):
        calls.append(0)
        return {"classification": outputs["probs"] * (2 if len(calls) == 3 else 1)}

    teacher = from_onnx("m", tmp_path / "m.onnx", only("classification"), **ONNX | {"read": read})
    with pytest.raises(LabelError, match="classification.probs are no probabilities") as caught:
        teacher.predict(IMAGES)
    assert caught.value.row == 2


@pytest.mark.parametrize(
    ("form", "given", "message"),
    [
        (None, {}, "m.onnx: cannot be read as ONNX: "),
        ({"shape": ("n", 3, "h", 40)}, {}, r"m.onnx: does not fix its input size \(None, 40\): set size"),
        ({}, {"size": (32, 48)}, "m.onnx: takes images of 32 x 40 pixels, not 32 x 48"),
        ({}, {"layout": "CHWN"}, "m.onnx: layout 'CHWN' is neither"),
        (
            {},
            {"layout": "NHWC"},
            r"takes pixels tensor\(float\) \[3, 3, 32, 40\], not one float NHWC of three channels",
        ),
        ({"element": "DOUBLE"}, {}, r"m.onnx: takes pixels tensor\(double\)"),
    ],
)
def test_files_that_are_no_teachers_are_refused_by_name(tmp_path, form, given, message):
    path = tmp_path / "m.onnx"
    path.write_bytes(b"not a network")
    if form is not None:
        write_classifier(path, **form)
    with pytest.raises(UserError, match=message):
        from_onnx("m", path, only("classification"), **given, **ONNX)
    with pytest.raises(UserError, match="none.onnx: cannot be read"):
        from_onnx("m", tmp_path / "none.onnx", only("classification"), **ONNX)


def test_a_fingerprint_follows_the_weights_and_the_normalization(tmp_path):
    def of_torch(module, mean=MEAN):
        teacher = from_torch("s", module, only("segmentation"), size=(32, 32), read=read_segmenter, mean=mean, std=STD)
        return teacher.fingerprint

    changed = Segmenter()
    with torch.no_grad():
        changed.out.bias[3] += 1e-6
    prints = [of_torch(Segmenter()), of_torch(changed), of_torch(Segmenter().half()), of_torch(Segmenter(), (0, 0, 0))]
    assert len(set(prints)) == 4 and of_torch(Segmenter()) == prints[0]

    write_classifier(tmp_path / "m.onnx")
    first, second = (
        from_onnx("m", tmp_path / "m.onnx", only("classification"), **ONNX | {"mean": mean}).fingerprint
        for mean in (MEAN, STD)
    )
    assert first != second and first.startswith(hashlib.sha256((tmp_path / "m.onnx").read_bytes()).hexdigest())


def test_a_module_is_read_in_tensors_of_any_type_or_arrays():
    def read(found):
        probs = found["out"].float().softmax(1).movedim(1, -1)
        return {"segmentation": probs.numpy() if arrays else (probs.argmax(-1), probs.amax(-1).bfloat16())}

    predicted = {}
    for arrays in (False, True):
        teacher = from_torch(
            "half", Segmenter().bfloat16(), only("segmentation"), size=(32, 32), read=read, mean=MEAN, std=STD
        )
        predicted[arrays] = teacher.predict(IMAGES[:, :, :32])["segmentation"]
    assert predicted[True]["ids"].shape == predicted[False]["ids"].shape == (4, 32, 32, 1)
    assert (predicted[True]["ids"] == predicted[False]["ids"]).mean() > 0.5  # one is blended, the other is the nearest


def test_the_recipes_of_the_documentation_run(tmp_path):
    write_classifier(tmp_path / "m.onnx")
    text = inspect.getdoc(modules)
    blocks = [part for part in text.split("\n\n") if re.match(" +(from|def|[a-z]+ = from_)", part)]
    program = "\n".join(textwrap.dedent(block) for block in blocks)
    for kind in (Segmentation, Detection, Classification):  # each example has the classes of its task
        program = program.replace(f"{kind.__name__}(classes)", f"{kind.__name__}")
    tasks = {kind.__name__: TASKS[kind.__name__.lower()] for kind in (Segmentation, Detection, Classification)}

    class Plain(Segmenter):
        def forward(self, x):
            return super().forward(x)["out"]

    names = {**tasks, "module": Plain(), "detector_module": Detector(), "path": tmp_path / "m.onnx"}
    exec(program, names)
    for name, size in (("segmenter", (96, 128)), ("detector", (96, 128)), ("classifier", (32, 40))):
        teacher = names[name]
        assert (
            teacher.size == size and teacher.predict(np.zeros((2, *size, 3), np.uint8)).keys() == teacher.tasks.keys()
        )
