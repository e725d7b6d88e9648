import itertools
import math
import pickle

import numpy as np
import pytest

from must.core.types import UserError
from must.scenes import raycast
from must.scenes import raycast as solids
from must.scenes.still import CLASSES, DOMAINS, IGNORE, MATERIALS, SURFACES, TASKS, Scenes

COUNT = 12


@pytest.fixture(scope="module", params=list(DOMAINS))
def frames(request):
    scenes = Scenes(COUNT, seed=5, domain=request.param)
    return [scenes.render(i) for i in range(COUNT)]


def directions(size, pitch):
    """Camera rays in the level frame, float64 [3, S, S], written out once more and apart from the library."""
    u = ((np.arange(size) + 0.5) / size * 2 - 1) * raycast.HALF_VIEW
    u, v = np.meshgrid(u, u)
    camera = np.stack([u, v, np.ones_like(u)])
    cos, sin = math.cos(pitch), math.sin(pitch)
    return np.einsum("ij,jhw->ihw", np.array([[1, 0, 0], [0, cos, sin], [0, -sin, cos]]), camera), camera


def excess(solid, floor, point):
    """How far outside the body a point [3, ...] is, meters (roughly); negative inside."""
    x, y, z = point[0] - solid.x, point[1] - (floor - solid.height), point[2] - solid.z
    outside = np.maximum(-y, y - solid.height)
    level = np.hypot(x, z)
    if solid.shape == solids.SPHERE:
        return np.sqrt(level**2 + (y - solid.half[0]) ** 2) - solid.half[0]
    if solid.shape == solids.CYLINDER:
        return np.maximum(level - solid.half[0], outside)
    if solid.shape == solids.CONE:
        return np.maximum(level - solid.half[0] * y / solid.height, outside)
    cos, sin = math.cos(solid.yaw), math.sin(solid.yaw)
    a, b = np.abs(x * cos + z * sin) - solid.half[0], np.abs(z * cos - x * sin) - solid.half[1]
    return np.maximum(np.maximum(a, b), outside)


def test_boxes_are_tight_hulls_of_the_visible_pixels(frames):
    for frame in frames:
        assert frame.instances.max() == len(frame.boxes) == len(frame.shapes) == len(frame.materials) > 0
        for k, box in enumerate(frame.boxes):
            rows, columns = (frame.instances == k + 1).nonzero()
            np.testing.assert_array_equal(box, [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])


def test_semantic_follows_the_instances_and_the_class_the_nearest_body(frames):
    for frame in frames:
        body = frame.instances > 0
        expected = len(SURFACES) + frame.shapes.astype(int)[np.maximum(frame.instances, 1) - 1]
        np.testing.assert_array_equal(frame.semantic[body], expected[body])
        assert set(np.unique(frame.semantic[~body])) <= {0, 1, 2, IGNORE}
        nearest = frame.instances.flat[np.where(body, frame.depth, np.inf).argmin()] - 1
        assert frame.label == frame.shapes[nearest] * len(MATERIALS) + frame.materials[nearest]


def test_depth_is_the_first_surface_on_every_ray():
    for domain, index in itertools.product(DOMAINS, range(3)):
        scenes = Scenes(3, seed=9, domain=domain)
        scene, frame = scenes.scene(index), scenes.render(index)
        rays = raycast.make_rays(64, scene.pitch)
        kept = raycast.cast_solids(scene.solids, scene.room.floor, rays, least=30, share=0.35).kept
        level, _ = directions(64, scene.pitch)
        bodies = [scene.solids[k] for k in kept]
        for k, solid in enumerate(bodies):
            mask = frame.instances == k + 1
            point = (level * frame.depth)[:, mask]
            assert np.abs(excess(solid, scene.room.floor, point)).max() < 2e-3
        seen = frame.depth > 0
        for fraction in np.linspace(0.05, 0.999, 60):  # nothing stands in the way
            point = (level * frame.depth * fraction)[:, seen]
            assert min(excess(solid, scene.room.floor, point).min() for solid in bodies) > -2e-3
            assert point[1].max() < scene.room.floor


def test_normals_are_unit_face_the_camera_and_agree_with_the_depth(frames):
    angles = []
    for frame in frames:
        valid = frame.depth > 0
        np.testing.assert_allclose(np.linalg.norm(frame.normals[valid], axis=-1), 1, atol=1e-4)
        assert (frame.normals[~valid] == 0).all()
        camera = directions(64, frame.pitch)[1]
        point = np.moveaxis(camera * frame.depth, 0, -1)
        assert ((frame.normals * point).sum(-1)[valid] < 1e-3).all()
        across, down = point[1:-1, 2:] - point[1:-1, :-2], point[2:, 1:-1] - point[:-2, 1:-1]
        slope = np.cross(down, across)
        slope /= np.linalg.norm(slope, axis=-1, keepdims=True) + 1e-12
        # One smooth surface: the four neighbors have the same owner and nearly the same normal.
        middle, smooth = frame.normals[1:-1, 1:-1], valid[1:-1, 1:-1].copy()
        for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2)):
            other = (slice(dy, dy + 62), slice(dx, dx + 62))
            smooth &= (frame.instances[other] == frame.instances[1:-1, 1:-1]) & valid[other]
            smooth &= (frame.normals[other] * middle).sum(-1) > 0.98
        assert smooth.mean() > 0.4
        angles.append(np.degrees(np.arccos(np.clip((slope * middle).sum(-1)[smooth], -1, 1))))
    angles = np.concatenate(angles)
    assert np.median(angles) < 0.5 and np.quantile(angles, 0.99) < 5


def test_sky_is_unlabeled_everywhere_and_only_in_the_open():
    sky = 0
    for domain in DOMAINS:
        frame = Scenes(1, seed=2, domain=domain).render(0)
        np.testing.assert_array_equal(frame.semantic == IGNORE, frame.depth == 0)
        assert (frame.depth == 0).any() == DOMAINS[domain].open_air
        sky += (frame.depth == 0).sum()
    assert sky > 0


def test_an_example_depends_on_its_place_alone():
    scenes = Scenes(8, seed=3)
    forward = [scenes[i] for i in range(8)]
    copy = pickle.loads(pickle.dumps(scenes))
    part = Scenes(4, seed=3, start=4)
    for i in (5, 7, 4, 6):
        for other in (scenes[i], copy[i], part[i - 4]):
            assert other.id == forward[i].id
            np.testing.assert_array_equal(other.image, forward[i].image)
            for task in TASKS:
                for field, value in forward[i].labels[task].items():
                    np.testing.assert_array_equal(other.labels[task][field], value)


def test_seeds_splits_domains_and_indices_share_nothing():
    variants = [{}, {"seed": 1}, {"seed": 10}, {"split": "test"}, {"domain": "clutter"}, {"start": 3}, {"start": 30}]
    sources = [Scenes(3, **v) for v in variants]
    ids = [i for source in sources for i in source.ids]
    assert len(set(ids)) == len(ids)
    assert len({source.fingerprint for source in sources}) == len(sources)
    places = [source.scene(i).solids[0] for source in sources for i in range(3)]
    assert len({(solid.x, solid.z) for solid in places}) == len(places)


def test_domains_differ_in_what_the_sensor_sees():
    mean, spread = {}, {}
    for domain in DOMAINS:
        images = np.stack([frame.image for frame in map(Scenes(24, seed=1, domain=domain).render, range(24))]) / 255
        mean[domain] = images.mean()
        spread[domain] = np.abs(np.diff(images, axis=2)).mean()
    assert mean["night"] < 0.7 * mean["indoor"]
    assert spread["clutter"] > 1.3 * spread["indoor"]


def test_labels_in_record_form():
    scenes = Scenes(3, seed=4, size=48, domain="outdoor", labels=TASKS, name="yard")
    example, frame = scenes[2], scenes.render(2)
    assert example.id == scenes.ids[2] == "yard/2" and example.image.shape == (48, 48, 3)
    labels = example.labels
    assert labels["classification"]["ids"].tolist() == [frame.label] and labels["classification"]["rest"] == 0
    depth = labels["depth"]
    assert depth["depth"].dtype == np.uint16
    decoded = depth["depth"] * depth["scale"] + depth["offset"]
    np.testing.assert_allclose(decoded, frame.depth, atol=0.00051)
    np.testing.assert_array_equal(depth["depth"] == 0, frame.depth == 0)
    normals = labels["normals"]["normals"]
    assert normals.dtype == np.int8
    np.testing.assert_allclose(normals / 127, frame.normals, atol=0.5001 / 127)
    segmentation = labels["segmentation"]
    assert segmentation["ids"].shape == segmentation["probs"].shape == (48, 48, 1)
    np.testing.assert_array_equal(segmentation["probs"] == 0, segmentation["ids"] == IGNORE)
    detection = labels["detection"]
    assert {k: (v.dtype.name, v.shape) for k, v in detection.items()} == {
        "boxes": ("float32", (len(frame.boxes), 4)),
        "classes": ("uint16", (len(frame.boxes),)),
        "scores": ("float16", (len(frame.boxes),)),
        "crowd": ("bool", (len(frame.boxes),)),
        "unknown": ("uint16", (0,)),
    }
    assert scenes.classes == CLASSES


def test_only_the_wanted_tasks_are_annotated():
    scenes = Scenes(2, labels=("depth", "detection"))
    assert set(scenes[1].labels) == {"depth", "detection"} and set(scenes.classes) == {"detection"}


def test_bodies_are_large_enough_and_classes_balanced():
    frames = [Scenes(240, seed=6).render(i) for i in range(240)]
    widths = np.concatenate([frame.boxes[:, 2] - frame.boxes[:, 0] for frame in frames])
    assert np.mean(widths > 10) > 0.8
    assert np.mean([2 <= len(frame.boxes) <= 5 for frame in frames]) > 0.9
    counts = np.bincount([frame.label for frame in frames], minlength=len(CLASSES["classification"]))
    assert counts.min() >= 6


@pytest.mark.parametrize("size", [8, 97, 256])
def test_every_size_shows_the_same_scene(size):
    small, large = Scenes(3, seed=8, size=size), Scenes(3, seed=8)
    for i in range(3):
        a, b = small.render(i), large.render(i)
        assert a.image.shape == (size, size, 3) and a.label == b.label
        assert abs(np.median(a.depth) - np.median(b.depth)) < 0.5


@pytest.mark.parametrize(
    "wrong",
    [{"domain": "mars"}, {"labels": ("smell",)}, {"size": 4}, {"count": -1}, {"start": -2}, {"labels": "depth"}],
)
def test_mistakes_are_named(wrong):
    with pytest.raises(UserError, match="scenes"):
        Scenes(**{"count": 2, **wrong})


def test_indices_outside_are_refused():
    scenes = Scenes(2, start=5)
    with pytest.raises(IndexError):
        scenes[2]
    assert scenes.ids[-1] == "scenes-indoor-train-0/6" and list(scenes.ids[:1]) == ["scenes-indoor-train-0/5"]
