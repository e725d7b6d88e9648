"""Configuration sections -> objects, each with `Thing(**section)`; the recipes read no key that is not turned into one here."""

import functools
import inspect
import json
from collections.abc import Mapping
from typing import Any

from must.core.types import Balance, Model, Policy, Source, UserError
from must.data import geometry
from must.data.augment import Photometric
from must.data.clips import ClipEncoder, Window
from must.data.combine import Cached
from must.data.mix import CLEAN, CutMix, Cutout
from must.data.pipeline import Change, Encoder, View
from must.data.rand_augment import RandAugment
from must.data.sources import source
from must.models import fpn, multi_head, r2plus1d, resnet, temporal_shift, video_transformer
from must.objectives import aggregate
from must.objectives import balance as balances
from must.pseudo_label import policy
from must.tasks import base
from must.tasks.base import Task


def fill(section: Any, **values: Any) -> Any:
    """A copy of a section in which "{name}" stands for a value: the whole string takes the value's type.

    Args:
      section: nested dicts, lists and scalars.
      values: for instance seed=3, root="data".

    Raises:
      UserError: a value that is asked for is empty.
    """
    if isinstance(section, Mapping):
        return {key: fill(value, **values) for key, value in section.items()}
    if isinstance(section, (list, tuple)):
        return [fill(value, **values) for value in section]
    if isinstance(section, str):
        for name, value in values.items():
            if value == "" and f"{{{name}}}" in section:
                raise UserError(f"--config.{name}= is required by {section!r}")
            if section == f"{{{name}}}":
                return value
            section = section.replace(f"{{{name}}}", str(value))
    return section


@functools.lru_cache(maxsize=64)
def _source(text: str) -> Source:
    return Cached(source(**json.loads(text)))


def build_source(section: Mapping[str, Any]) -> Source:
    """One source from {"kind": ..., arguments}; the same section gives the same object, decoded images included."""
    return _source(json.dumps(section, sort_keys=True))


def build_tasks(sections: Mapping[str, Mapping[str, Any]], sources: Mapping[str, Source]) -> dict[str, Task]:
    """Tasks by name; one whose labels hold class ids takes the class names of its labeled source."""
    tasks = {}
    for name, section in sections.items():
        section = dict(section)
        names = sources[name].classes.get(name) if name in sources else None
        if names and "classes" not in section:
            section["classes"] = tuple(names)
        tasks[name] = base.build(**{key: tuple(v) if isinstance(v, list) else v for key, v in section.items()})
    return tasks


PARTS = {
    "backbone": {
        "resnet": resnet.ResNet,
        "temporal_shift": temporal_shift.TemporalShiftResNet,
        "r2plus1d": r2plus1d.R2Plus1D,
        "video_transformer": video_transformer.VideoTransformer,
    },
    "neck": {"fpn": fpn.FPN, "pafpn": fpn.PAFPN},
}


def _part(name: str, section: Mapping[str, Any], kind: str) -> Any:
    """The backbone or neck that a section names; `kind` where it names none."""
    section = {key: tuple(v) if isinstance(v, list) else v for key, v in section.items()}
    kind = section.pop("kind", kind)
    if kind not in PARTS[name]:
        raise UserError(f"model.{name}.kind {kind!r}: not one of {', '.join(PARTS[name])}")
    try:
        return PARTS[name][kind](**section)
    except (TypeError, ValueError) as error:  # an unknown key, an impossible value
        raise UserError(f"model.{name}: {error}") from None


def build_model(section: Mapping[str, Any], tasks: Mapping[str, Task]) -> Model:
    """Backbone, neck and the tasks' heads; without a neck (absent, None or {}) the heads read the backbone's levels."""
    backbone = _part("backbone", section["backbone"], "resnet")
    neck = _part("neck", section["neck"], "fpn") if section.get("neck") else None
    return multi_head.multi_head(backbone, neck, {name: task.head() for name, task in tasks.items()})


def build_encoder(
    image: Mapping[str, Any],
    tasks: Mapping[str, Task],
    training: Mapping[str, Any] | None = None,
    frames: Mapping[str, int] | None = None,
    clips: int = 1,
) -> Encoder | ClipEncoder:
    """What a model sees: the whole image, or with `training` = {"geometry", "view"} a drawn one, beside which a mean
    teacher sees it in the view "clean".

    Args:
      image: {"size", "keep_aspect"}; with "clip" = {fields of `Window`} of videos.
      tasks: whose labels a row carries.
      training: how pictures change.
      frames: of videos, {view: T}.
      clips: of videos, how many make a row.
    """
    size, keep_aspect = tuple(image["size"]), image["keep_aspect"]
    draw, view = None, None
    if training is not None:
        drawn = {key: tuple(v) if isinstance(v, (list, tuple)) else v for key, v in training["geometry"].items()}
        draw = functools.partial(geometry.draw, keep_aspect=keep_aspect, **drawn)
        view = build_view(training["view"])
    if "clip" not in image:
        clean = {CLEAN: None} if training is not None and training.get("mean_teacher") else {}
        return Encoder(tasks, size, draw, {"image": view, **clean}, keep_aspect)
    try:
        window = Window(random=training is not None, **image["clip"])
    except TypeError as error:
        raise UserError(f"image.clip: {str(error).partition(') ')[2] or error}") from None
    return ClipEncoder(tasks, size, frames or {"image": 8}, window, draw, view, keep_aspect, clips)


VIEWS = {"photometric": Photometric, "rand_augment": RandAugment}


def build_view(section: Mapping[str, Any]) -> View | None:
    """How pictures change before a network learns from them, {"kind": one of VIEWS, its arguments}; {} leaves them alone."""
    section = dict(section)
    kind = section.pop("kind", "photometric")
    if kind not in VIEWS:
        raise UserError(f"view.kind {kind!r}: not one of {', '.join(VIEWS)}")
    unknown = sorted(set(section) - set(inspect.signature(VIEWS[kind]).parameters))
    if unknown:
        raise UserError(f"view.{unknown[0]}: {kind} takes {', '.join(inspect.signature(VIEWS[kind]).parameters)}")
    return VIEWS[kind](**section) if section or kind != "photometric" else None


def build_changes(settings: Mapping[str, Any], tasks: Mapping[str, Task]) -> list[Change]:
    """What is done to training rows, from the sections "cutmix" and "cutout"; {} does nothing."""
    found = []
    for key, kind in (("cutmix", CutMix), ("cutout", Cutout)):
        if not settings[key]:
            continue
        for name, task in tasks.items():
            if not task.whole and type(task).paste is Task.paste:
                raise UserError(f"{key}: does not work for {name}, which has no paste")
        try:
            found.append(kind(tasks, **settings[key]))
        except TypeError as error:
            raise UserError(f"{key}: {str(error).partition(') ')[2] or error}") from None
    return found


BALANCES = {
    "fixed": balances.fixed,
    "uncertainty": balances.uncertainty,
    "dwa": balances.dwa,
    "rlw": balances.rlw,
    "famo": balances.famo,
    "gradnorm": balances.gradnorm,
    "pcgrad": aggregate.pcgrad,
    "cagrad": aggregate.cagrad,
    "nash_mtl": aggregate.nash_mtl,
    "upgrad": aggregate.upgrad,
}


def build_balance(section: Mapping[str, Any]) -> Balance:
    """Weights of the tasks from {"kind": one of BALANCES, its arguments}; "watch": True logs the tasks' gradients too."""
    section = dict(section)
    kind, watch = section.pop("kind", None), section.pop("watch", False)
    if kind not in BALANCES:
        raise UserError(f"balance.kind {kind!r}: not one of {', '.join(BALANCES)}")
    unknown = sorted(set(section) - set(inspect.signature(BALANCES[kind]).parameters))
    if unknown:
        known = ", ".join(inspect.signature(BALANCES[kind]).parameters) or "no arguments"
        raise UserError(f"balance.{unknown[0]}: {kind} takes {known}")
    made = BALANCES[kind](**section)
    return made._replace(gram=made.gram or bool(watch))


def build_policy(section: Mapping[str, Any]) -> Policy:
    """{"positive": p, "negative": n}, or {"threshold": p} for MuST's two states."""
    try:
        return policy.hard(**section) if "threshold" in section else Policy(**section)
    except TypeError:
        raise UserError(f"policy {dict(section)}: give 'threshold', or 'positive' and 'negative'") from None
