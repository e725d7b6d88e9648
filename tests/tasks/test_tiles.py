"""Large pictures in tiles: every object once, maps without seams, whatever the tiles' borders cut."""

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from must.core.types import Teacher, UserError
from must.data.geometry import own_frame, transform_image, whole_image
from must.data.pipeline import Encoder
from must.experiment.labeling import POOL, LabelPass, records_directory, run_pass
from must.experiment.sections import parse
from must.experiment.settings import Label
from must.readers.folders import Photos
from must.readers.records import Records
from must.tasks.classification import Classification
from must.tasks.depth import Depth
from must.tasks.detection import Detection
from must.tasks.normals import Normals
from must.tasks.segmentation import Segmentation
from must.tasks.tiles import tiled

FRAME = (64, 64)
TASKS = {
    "boxes": Detection(("red", "green"), max_detections=20),
    "class": Classification(("dark", "bright")),
    "mask": Segmentation(("ground", "red", "green"), top_k=2, stride=1),
    "depth": Depth(stride=1, max_depth=100.0),
    "normals": Normals(stride=1),
}
LEAST = 6  # pixels of its frame that an object needs to be found


def eye(images):
    """Finds rectangles of pure color, and says a depth that falls with their blue; in network form, no network."""
    images = np.asarray(images)
    rows = []
    for image in images:
        boxes, classes = [], []
        for number in range(2):
            for part in ndimage.find_objects(ndimage.label(image[..., number] > 160)[0]):
                y, x = part
                if min(y.stop - y.start, x.stop - x.start) >= LEAST:
                    boxes.append([x.start, y.start, x.stop, y.stop])
                    classes.append(number)
        rows.append({"boxes": np.array(boxes, np.float32).reshape(-1, 4), "classes": np.array(classes, np.int64)})
    found = [{**row, "scores": np.linspace(0.9, 0.8, len(row["classes"])), "labels": row["classes"]} for row in rows]
    mask = np.where(images[..., 0] > 160, 1, np.where(images[..., 1] > 160, 2, 0)).astype(np.uint8)
    size = tuple(images.shape[1:3])
    slope = np.broadcast_to(np.array([0.6, 0.0, -0.8], np.float32), (*images.shape[:3], 3))
    bright = images.mean((1, 2, 3)) / 255
    return {
        "boxes": TASKS["boxes"].from_external(found, size),
        "class": {"probs": np.stack([1 - bright, bright], -1).astype(np.float32)},
        "mask": {
            "ids": np.stack([mask, (mask + 1) % 3], -1).astype(np.uint8),
            "probs": np.broadcast_to(np.array([200, 40], np.uint8), (*mask.shape, 2)),
        },
        "depth": {"depth": 1 + images[..., 2].astype(np.float32) / 32},
        "normals": {"normals": slope},
    }


EYE = Teacher("eye", TASKS, eye, FRAME, "eye")


def scene(size, *objects):
    """uint8 [H, W, 3]: rectangles (color, x0, y0, x1, y1) on black."""
    image = np.zeros((*size, 3), np.uint8)
    for color, x0, y0, x1, y1 in objects:
        image[y0:y1, x0:x1, color] = 255
    return image


def boxes_of(teacher, image):
    label = {name: np.asarray(value)[0] for name, value in teacher.predict(image[None])["boxes"].items()}
    order = np.lexsort(label["boxes"][label["valid"]].T)
    return label["boxes"][label["valid"]][order], label["classes"][label["valid"]][order]


@pytest.mark.parametrize("place", [(44, 20), (50, 50), (36, 60), (0, 0), (90, 90)])
@pytest.mark.parametrize("side", [10, 30, 60])
def test_an_object_is_found_once_wherever_the_tiles_cut_it(place, side):
    """Smaller and larger than the overlap of 16 pixels, and as large as a tile."""
    teacher = tiled(EYE, (2, 2), 0.25)
    assert teacher.size == (112, 112)
    x, y = place
    end = min(x + side, 112), min(y + side, 112)
    image = scene(teacher.size, (0, x, y, *end))
    boxes, classes = boxes_of(teacher, image)
    np.testing.assert_allclose(boxes, [[x, y, *end]], atol=2.5)
    assert classes.tolist() == [0]


def test_an_object_that_no_part_shows_whole_is_joined_from_its_sides():
    """Too thin to be seen in the whole picture, and longer than a tile."""
    teacher = tiled(EYE, (1, 3), 0.25)
    image = scene(teacher.size, (1, 10, 30, 150, 36))
    boxes, _ = boxes_of(teacher, image)
    np.testing.assert_allclose(boxes, [[10, 30, 150, 36]], atol=1)


def test_neighbors_stay_two_and_classes_apart():
    teacher = tiled(EYE, (2, 2), 0.25)
    image = scene(teacher.size, (0, 40, 40, 54, 60), (0, 58, 40, 72, 60), (1, 40, 64, 72, 80))
    boxes, classes = boxes_of(teacher, image)
    np.testing.assert_allclose(boxes, [[40, 40, 54, 60], [58, 40, 72, 60], [40, 64, 72, 80]], atol=2.5)
    assert classes.tolist() == [0, 0, 1]


def test_small_objects_of_a_large_picture_are_found_in_tiles_alone():
    rng = np.random.default_rng(0)
    places = [(16 * i + 2, 16 * j + 3) for i in range(9) for j in range(9)]
    chosen = [places[i] for i in rng.choice(len(places), 12, replace=False)]
    teacher = tiled(EYE, (3, 3), 0.25)
    image = scene(teacher.size, *((0, x, y, x + 8, y + 8) for x, y in chosen))
    assert len(boxes_of(teacher, image)[0]) == 12
    whole = transform_image(image, whole_image(teacher.size, FRAME))
    assert len(boxes_of(EYE, whole)[0]) == 0


def test_maps_have_no_seams_and_the_whole_decides_about_the_whole():
    teacher = tiled(EYE, (2, 3), 0.25)
    image = np.zeros((*teacher.size, 3), np.uint8)
    image[:, :80, 0] = 255
    image[..., 2] = np.linspace(0, 200, teacher.size[1]).astype(np.uint8)
    found = teacher.predict(image[None])
    labels = {name: {field: np.asarray(v)[0] for field, v in label.items()} for name, label in found.items()}
    np.testing.assert_array_equal(labels["mask"]["ids"][..., 0], np.where(image[..., 0] > 160, 1, 0))
    np.testing.assert_array_equal(labels["mask"]["ids"][..., 1], np.where(image[..., 0] > 160, 2, 1))
    assert set(np.unique(labels["mask"]["probs"][..., 0])) == {200}
    zoom = teacher.size[1] / FRAME[1]  # a tile shows everything so much larger, and so nearer
    np.testing.assert_allclose(labels["depth"]["depth"], (1 + image[..., 2] / 32.0) * zoom, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(labels["normals"]["normals"], axis=-1), 1, atol=1e-5)
    assert labels["class"]["probs"].shape == (2,) and labels["class"]["probs"][0] > 0.5
    for name, task in TASKS.items():  # a record can be made of them
        restored = task.restore(labels[name], whole_image((50, 90), teacher.size))
        task.transform(restored, own_frame((50, 90)))


def test_relative_depth_is_that_of_the_whole():
    tasks = {"depth": Depth(depth_kind="relative", stride=1, max_depth=100.0)}
    ramp = lambda images: {"depth": {"depth": 1 + np.asarray(images)[..., 2].astype(np.float32)}}  # noqa: E731
    teacher = tiled(Teacher("relative", tasks, ramp, FRAME, "x"), (2, 2))
    image = np.full((*teacher.size, 3), 10, np.uint8)
    image[56:] = 60
    depth = np.asarray(teacher.predict(image[None])["depth"]["depth"])[0]
    assert abs(depth[10, 10] - 11) < 0.1 and abs(depth[-10, -10] - 61) < 0.1


def test_one_tile_is_the_teacher_and_no_tile_is_refused():
    assert tiled(EYE, (1, 1)) is EYE
    assert tiled(EYE, (2, 2)).fingerprint != EYE.fingerprint
    for grid, overlap in (((0, 1), 0.2), ((2, 2), 1.0)):
        with pytest.raises(UserError, match="expected"):
            tiled(EYE, grid, overlap)


def test_a_label_pass_sees_large_pictures_in_tiles(tmp_path):
    """By the option of the settings; pictures of other sizes than the tiles' frame."""
    pictures = [
        scene((240, 200), (0, 100, 100, 125, 125), (1, 20, 160, 50, 190)),
        scene((112, 112), (1, 50, 50, 60, 62)),
    ]
    for number, picture in enumerate(pictures):
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "photos" / f"{number}.png")
    encoder = Encoder(TASKS, FRAME)
    options = {"shards": 1, "batch_size": 2}
    one = LabelPass({POOL: Photos(str(tmp_path / "photos"))}, TASKS, encoder, options, tiles=((2, 2), 0.25))
    run_pass(lambda: (one, [EYE]), str(tmp_path), (0, 1), lambda *progress: None)
    records = Records(records_directory(str(tmp_path)))
    found = [records[i].labels for i in range(2)]
    order = np.argsort(found[0]["boxes"]["classes"])
    expected = [[100, 100, 125, 125], [20, 160, 50, 190]]
    np.testing.assert_allclose(found[0]["boxes"]["boxes"][order], expected, atol=6)
    np.testing.assert_allclose(found[1]["boxes"]["boxes"], [[50, 50, 60, 62]], atol=2)
    assert found[0]["mask"]["ids"].shape[:2] == (240, 200)
    assert "tiles-2x2" in str(records.provenance)
    with pytest.raises(UserError, match="tiles"):
        parse(Label, {"tiles": (0, 2)})
