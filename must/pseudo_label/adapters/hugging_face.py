"""Pretrained models of Hugging Face transformers as teachers, see `must.pseudo_label.adapters.pretrained`."""

import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from must.core.types import Teacher, UserError
from must.pseudo_label.adapters.modules import on_host, state_hash
from must.pseudo_label.adapters.pretrained import (
    ClassNames,
    bounded,
    box_teacher,
    class_map_of,
    hash_of,
    in_parts,
    only_task,
    pixel_teacher,
    pixels,
)
from must.pseudo_label.teacher import from_function
from must.tasks.base import Task
from must.tasks.depth import InverseDepth

_METRIC = ("depth_pro", "glpn", "prompt_depth_anything", "zoedepth")  # models whose depth is always in meters
_TOKENS, _PROMPTS = ("grounding-dino", "mm-grounding-dino"), ("owlvit", "owlv2")  # what zero-shot detectors score


def hf_detector(
    name: str,
    tasks: Mapping[str, Task],
    model: Any,
    *,
    processor: Any = None,
    class_map: ClassNames = None,
    revision: str | None = None,
    device: str = "cpu",
    batch_size: int = 8,
) -> Teacher:
    """A teacher of boxes from a detector of Hugging Face transformers.

    Detectors of fixed labels (DETR, RT-DETR, ...), and such that look for what prompts describe (Grounding DINO,
    OWL-ViT): the keys of their class map are the prompts. A box has the score of its best prompt, which is that of
    the prompt's best token.

    Args:
      name: for provenance and messages.
      tasks: {task: a task with boxes}.
      model: a name on the Hugging Face hub or a directory, of which only safetensors are read; or the module itself.
      processor: of the module; with a name it is loaded from there.
      class_map: {label or prompt: class} or a file of such lines.
      revision: of the files on the hub, such as a commit.
      device: that torch computes on.
      batch_size: pictures of one size that the network sees at once.

    Raises:
      UserError: no such model, or a class map that does not fit labels and classes.
    """
    key, task = only_task(name, tasks)
    kind = (
        "AutoModelForZeroShotObjectDetection" if _is_zero_shot(name, model, revision) else "AutoModelForObjectDetection"
    )
    model, processor = _loaded(name, model, processor, kind, revision)
    images = getattr(processor, "image_processor", processor)
    family, prompts, text = model.config.model_type, (), {}
    if kind == "AutoModelForZeroShotObjectDetection":
        prompts = _prompts(name, class_map, task.classes)
        text = _text(name, model, processor, prompts)
    classes = class_map_of(name, key, task, class_map, prompts or _labels(model.config))
    options = {"threshold": getattr(task, "score_floor", 0.0)}
    if "use_focal_loss" in inspect.signature(images.post_process_object_detection).parameters:
        options["use_focal_loss"] = getattr(model.config, "use_focal_loss", True)

    def each(outputs: Any, inputs: Any, size: tuple[int, int]) -> Iterator[Any]:
        if family in _TOKENS:
            outputs["logits"] = _by_prompt(outputs["logits"], text["spans"], len(prompts))
        sizes = [size] * len(outputs["logits"])
        yield from images.post_process_object_detection(outputs, target_sizes=sizes, **options)

    forward = _forward(model, processor, images, text.get("text"), device, each)
    facts = (_about(model, processor), classes.table, prompts)
    return box_teacher(name, key, task, classes, forward, batch_size, facts)


def hf_segmenter(
    name: str,
    tasks: Mapping[str, Task],
    model: Any,
    *,
    processor: Any = None,
    class_map: ClassNames = None,
    revision: str | None = None,
    device: str = "cpu",
    batch_size: int = 8,
) -> Teacher:
    """A teacher of segmentation from a semantic segmenter of Hugging Face transformers (SegFormer, Mask2Former, ...).

    A pixel's score is the probability of its class: the softmax over labels; of networks that classify masks the
    labels' share of what all masks claim, or the claim itself where that is less than 1.

    Args: as of `hf_detector`.

    Raises:
      UserError: no such model, or a class map that does not fit labels and classes.
    """
    key, task = only_task(name, tasks)
    kinds = "AutoModelForSemanticSegmentation", "AutoModelForUniversalSegmentation"
    model, processor = _loaded(name, model, processor, kinds, revision)
    classes = class_map_of(name, key, task, class_map, _labels(model.config))

    def each(outputs: Any, inputs: Any, size: tuple[int, int]) -> Iterator[Any]:
        by_masks = "class_queries_logits" in outputs or "pred_masks" in outputs
        for row in range(len(next(iter(outputs.values())))):
            one = type(outputs)(**{field: value[row : row + 1] for field, value in outputs.items()})
            (found,) = processor.post_process_semantic_segmentation(
                one, target_sizes=[bounded(size)], return_segmentation_scores=True
            )
            scores = found["segmentation_scores"]
            yield pixels(scores / scores.sum(0).clamp(min=1) if by_masks else scores.softmax(0), classes, task.ignore)

    forward = _forward(model, processor, processor, None, device, each)
    return pixel_teacher(name, key, task, classes, forward, batch_size, (_about(model, processor), classes.table))


def hf_depth(
    name: str,
    tasks: Mapping[str, Task],
    model: Any,
    *,
    processor: Any = None,
    kind: str = "",
    revision: str | None = None,
    device: str = "cpu",
    batch_size: int = 8,
) -> Teacher:
    """A teacher of depth from a depth estimator of Hugging Face transformers (Depth Anything, DPT, ZoeDepth, ...).

    Args:
      name: for provenance and messages.
      tasks: {task: `must.Depth`}; inverse depth needs depth_kind="relative".
      model: a name on the Hugging Face hub or a directory, of which only safetensors are read; or the module itself.
      processor: of the module; with a name it is loaded from there.
      kind: of its predictions, "metric", meters, or "inverse", inverse depth up to scale and shift; by default what
        the model's configuration says, where it does.
      revision: of the files on the hub, such as a commit.
      device: that torch computes on.
      batch_size: pictures of one size that the network sees at once.

    Raises:
      UserError: no such model, predictions of unknown kind, or inverse depth for a metric task.
    """
    key, task = only_task(name, tasks)
    model, processor = _loaded(name, model, processor, "AutoModelForDepthEstimation", revision)
    config = model.config
    stated = {"relative": "inverse", "metric": "metric"}.get(getattr(config, "depth_estimation_type", ""), "")
    kind = kind or ("metric" if config.model_type in _METRIC else stated)
    if kind not in ("metric", "inverse"):
        raise UserError(
            f"teacher {name}: kind={kind!r}: {config.model_type} does not tell whether it predicts meters, 'metric' "
            "(fine-tuned on NYU or KITTI), or inverse depth up to scale and shift, 'inverse' (MiDaS)"
        )
    if kind == "inverse" and getattr(task, "depth_kind", "") == "metric":
        raise UserError(
            f"teacher {name}: predicts inverse depth up to scale and shift, from which metric {key!r} cannot learn: "
            f"set depth_kind='relative' of {key!r}, or take a metric model"
        )
    sourced = "source_sizes" in inspect.signature(processor.post_process_depth_estimation).parameters

    def each(outputs: Any, inputs: Any, size: tuple[int, int]) -> Iterator[Any]:
        sizes = [size] * len(outputs["predicted_depth"])
        more = {"source_sizes": sizes} if sourced else {}
        for found in processor.post_process_depth_estimation(outputs, target_sizes=sizes, **more):
            yield on_host(found["predicted_depth"]).reshape(size)

    forward = _forward(model, processor, processor, None, device, each)

    def predict(images: np.ndarray) -> dict[str, Any]:
        values = np.stack(list(in_parts(images, batch_size, forward)))
        return {key: InverseDepth(values) if kind == "inverse" else values}

    return from_function(name, predict, tasks, size=None, fingerprint=hash_of(_about(model, processor), kind))


def _forward(
    model: Any, processor: Any, images: Any, text: str | None, device: str, each: Callable[..., Iterator[Any]]
) -> Callable[[np.ndarray], Iterator[Any]]:
    """A module of transformers on pictures of one size: what `each` makes of its outputs, in float32."""
    import torch

    model = model.eval().to(device)

    @torch.no_grad()
    def forward(pictures: np.ndarray) -> Iterator[Any]:
        words = {} if text is None else {"text": [text] * len(pictures)}
        inputs = processor(images=list(pictures), return_tensors="pt", input_data_format="channels_last", **words)
        inputs = inputs.to(device, dtype=model.dtype)
        outputs = model(**inputs)
        tensors = {field: value for field, value in outputs.items() if isinstance(value, torch.Tensor)}
        floats = {field: value.float() if value.is_floating_point() else value for field, value in tensors.items()}
        yield from each(type(outputs)(**floats), inputs, pictures.shape[1:3])

    return forward


def _is_zero_shot(name: str, model: Any, revision: str | None) -> bool:
    from transformers.models.auto import modeling_auto

    config = _from_hub(name, "AutoConfig", model, revision) if isinstance(model, str) else model.config
    return config.model_type in modeling_auto.MODEL_FOR_ZERO_SHOT_OBJECT_DETECTION_MAPPING_NAMES


def _loaded(
    name: str, model: Any, processor: Any, kinds: str | tuple[str, ...], revision: str | None
) -> tuple[Any, Any]:
    """The module and its processor, loaded where a name or directory is given."""
    if not isinstance(model, str):
        if processor is None:
            raise UserError(f"teacher {name}: a module needs its processor")
        return model, processor
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    if len(kinds) > 1:
        from transformers.models.auto import modeling_auto

        family = _from_hub(name, "AutoConfig", model, revision).model_type
        kinds = kinds[:1] if family in modeling_auto.MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES else kinds[1:]
    loader = "AutoProcessor" if "ZeroShot" in kinds[0] else "AutoImageProcessor"
    processor = processor or _from_hub(name, loader, model, revision)
    return _from_hub(name, kinds[0], model, revision, use_safetensors=True), processor


def _from_hub(name: str, kind: str, path: str, revision: str | None, **options: Any) -> Any:
    try:
        import transformers
    except ImportError:
        raise UserError(f"teacher {name}: needs transformers: pip install 'must[transformers]'") from None
    try:
        return getattr(transformers, kind).from_pretrained(path, revision=revision, **options)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"teacher {name}: {path}: {str(error).strip().splitlines()[0]}") from None


def _labels(config: Any) -> list[str]:
    """Names of a model's labels by id."""
    names = {int(one): str(label) for one, label in config.id2label.items()}
    return [names.get(one, "") for one in range(max(names) + 1)]


def _prompts(name: str, class_map: ClassNames, classes: Sequence[str]) -> tuple[str, ...]:
    """What a zero-shot detector looks for: the left sides of the class map."""
    if isinstance(class_map, str | os.PathLike):
        raise UserError(f"teacher {name}: prompts are given as a mapping, class_map={{'a cat': 'cat'}}")
    return tuple(class_map) if class_map else tuple(classes)


def _text(name: str, model: Any, processor: Any, prompts: Sequence[str]) -> dict[str, Any]:
    """The text for each picture, and for a detector that scores tokens the prompt of each, -1 for none."""
    if model.config.model_type in _PROMPTS:
        return {"text": list(prompts)}
    if model.config.model_type not in _TOKENS:
        raise UserError(f"teacher {name}: {model.config.model_type} is none of {', '.join((*_TOKENS, *_PROMPTS))}")
    for prompt in prompts:
        if set(".?") & set(prompt):
            raise UserError(f"teacher {name}: the prompt {prompt!r} holds '.' or '?', which separate prompts")
    text = ". ".join(prompt.strip().lower() for prompt in prompts) + "."
    ids = processor.tokenizer(text)["input_ids"]
    most = model.config.max_text_len
    if len(ids) > most:
        raise UserError(
            f"teacher {name}: {len(prompts)} prompts are {len(ids)} tokens, it takes {most}: make two teachers"
        )
    stop, special = processor.tokenizer.convert_tokens_to_ids("."), set(processor.tokenizer.all_special_ids)
    spans, prompt = [], 0
    for one in ids:
        spans.append(-1 if one == stop or one in special - {processor.tokenizer.unk_token_id} else prompt)
        prompt += one == stop
    return {"text": text, "spans": np.array(spans)}


def _by_prompt(logits: Any, spans: np.ndarray, count: int) -> Any:
    """Logits [B, Q, tokens] -> [B, Q, prompts], each prompt's best token."""
    import torch

    places = [torch.as_tensor(np.flatnonzero(spans == prompt), device=logits.device) for prompt in range(count)]
    return torch.stack([logits[..., place].amax(-1) for place in places], -1)


def _about(model: Any, processor: Any) -> str:
    """Weights and preprocessing of a model of transformers."""
    images = getattr(processor, "image_processor", processor)
    settings = json.dumps(images.to_dict(), sort_keys=True, default=str)
    return f"{state_hash(model.state_dict())} {settings}"
