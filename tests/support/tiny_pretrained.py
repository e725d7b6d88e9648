"""Tiny random models of transformers and torchvision with their own processors, made from their configurations."""

import functools
import re
import sys

import pytest

torch = pytest.importorskip("torch")
from tests.support.referees import randomized, torchvision  # noqa: E402  (before transformers, which imports torchvision)

transformers = pytest.importorskip("transformers")

torch.set_num_threads(1)  # threads that wait for one another take longer than networks this small

LABELS = ("N/A", "person", "car", "truck", "dog")
WORDS = ("a", "cat", "remote", "control", "dog", "red")
_ID = dict(enumerate(LABELS))
_FOUR, _ONE = [8] * 4, [1] * 4


def made(kind):
    """(module, processor) of a family, with random weights; the same object each time."""
    return _made(kind)


@functools.cache
def _made(kind):
    t = transformers
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = (
            randomized(_MODELS[kind](t)) if kind in ("detr", "segformer", "mask2former") else _MODELS[kind](t).eval()
        )
        processor = _processor(kind, t)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if re.search(_LARGER.get(kind, "^$"), name):
                    parameter.mul_(1 if parameter.ndim < 2 else 10 if kind in ("detr", "mask2former") else 3)
            if kind in _CLASSIFIERS:
                _spread(model, dict(model.named_modules())[_CLASSIFIERS[kind]], processor)
    return model, processor


def _spread(model, layer, processor):
    """Makes what a classifier says of a picture vary from place to place: untrained ones say the same everywhere."""
    said = []
    with layer.register_forward_hook(lambda *call: said.append(call[2])):
        blocks = torch.randint(0, 256, (8, 8, 3), dtype=torch.uint8)
        picture = blocks.repeat_interleave(9, 0).repeat_interleave(8, 1).numpy()
        model(**processor(images=picture, return_tensors="pt"))
    logits = said[-1].movedim(1, -1) if said[-1].ndim == 4 else said[-1]
    logits = logits.reshape(-1, logits.shape[-1])
    gain = 2 / logits.std(0)
    layer.weight.mul_(gain.view(-1, *[1] * (layer.weight.ndim - 1)))
    layer.bias.copy_((layer.bias - logits.mean(0)) * gain)


def _resnet(config, out):
    return config(
        embedding_size=8, hidden_sizes=_FOUR, depths=_ONE, layer_type="basic", out_features=[f"stage{n}" for n in out]
    )


def _swin(t, out):
    return t.SwinConfig(
        image_size=32,
        patch_size=4,
        embed_dim=8,
        depths=_ONE,
        num_heads=_ONE,
        window_size=2,
        out_features=[f"stage{n}" for n in out],
    )


def _detr(t):
    sizes = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim", "d_model"), 16)
    config = t.DetrConfig(
        use_timm_backbone=False,
        backbone=None,
        backbone_config=_resnet(t.ResNetConfig, [4]),
        num_queries=24,
        encoder_layers=1,
        decoder_layers=1,
        id2label=_ID,
        **sizes,
    )
    return t.DetrForObjectDetection(config)


def _rt_detr(t):
    sizes = dict.fromkeys(("encoder_hidden_dim", "encoder_ffn_dim", "d_model", "decoder_ffn_dim"), 16)
    config = t.RTDetrConfig(
        backbone_config=_resnet(t.RTDetrResNetConfig, [2, 3, 4]),
        freeze_backbone_batch_norms=False,
        encoder_in_channels=_FOUR[:3],
        encoder_attention_heads=2,
        decoder_in_channels=[16] * 3,
        decoder_layers=1,
        decoder_attention_heads=2,
        decoder_n_points=2,
        num_queries=24,
        num_denoising=0,
        hidden_expansion=0.5,
        id2label=_ID,
        **sizes,
    )
    return t.RTDetrForObjectDetection(config)


def _grounding_dino(t):
    text = t.BertConfig(vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    sizes = dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 2)
    sizes |= dict.fromkeys(("encoder_n_points", "decoder_n_points"), 2)
    config = t.GroundingDinoConfig(
        backbone_config=_swin(t, [2, 3, 4]),
        text_config=text,
        d_model=32,
        num_queries=24,
        encoder_layers=1,
        decoder_layers=2,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        max_text_len=24,
        **sizes,
    )
    return t.GroundingDinoForObjectDetection(config)


def _owlvit(t):
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = t.OwlViTConfig(
        text_config={**sizes, "vocab_size": 64, "max_position_embeddings": 12},
        vision_config={**sizes, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    return t.OwlViTForObjectDetection(config)


def _segformer(t):
    config = t.SegformerConfig(
        depths=_ONE, hidden_sizes=_FOUR, num_attention_heads=_ONE, decoder_hidden_size=16, id2label=_ID
    )
    return t.SegformerForSemanticSegmentation(config)


def _upernet(t):
    stages = [f"stage{n}" for n in range(1, 5)]
    config = t.UperNetConfig(
        backbone_config=t.ConvNextConfig(hidden_sizes=_FOUR, depths=_ONE, out_features=stages),
        hidden_size=16,
        pool_scales=[1, 2],
        use_auxiliary_head=False,
        id2label=_ID,
    )
    return t.UperNetForSemanticSegmentation(config)


def _mask2former(t):
    sizes = dict.fromkeys(
        ("feature_size", "mask_feature_size", "hidden_dim", "encoder_feedforward_dim", "dim_feedforward"), 32
    )
    config = t.Mask2FormerConfig(
        backbone_config=_swin(t, [1, 2, 3, 4]),
        encoder_layers=1,
        decoder_layers=2,
        num_attention_heads=2,
        num_queries=8,
        id2label=_ID,
        **sizes,
    )
    return t.Mask2FormerForUniversalSegmentation(config)


def _depth_anything(t, **more):
    backbone = t.Dinov2Config(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=28,
        patch_size=14,
        out_features=[f"stage{n}" for n in range(1, 5)],
        reshape_hidden_states=False,
    )
    sizes = {"reassemble_hidden_size": 16, "neck_hidden_sizes": _FOUR, "fusion_hidden_size": 8, "head_hidden_size": 8}
    config = t.DepthAnythingConfig(backbone_config=backbone, patch_size=14, **sizes, **more)
    return t.DepthAnythingForDepthEstimation(config)


def _dpt(t):
    config = t.DPTConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=16,
        image_size=32,
        patch_size=16,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=_FOUR,
        fusion_hidden_size=8,
        is_hybrid=False,
    )
    return t.DPTForDepthEstimation(config)


_CLASSIFIERS = {
    "detr": "class_labels_classifier",
    "rt_detr": "model.decoder.class_embed.0",
    "segformer": "decode_head.classifier",
    "upernet": "decode_head.classifier",
    "mask2former": "class_predictor",
}
# Untrained networks find the same everywhere: what has to be larger for them to differ from place to place.
_LARGER = {
    "detr": "query_position_embeddings",
    **dict.fromkeys(("rt_detr", "grounding_dino", "owlvit"), "weight"),
    "mask2former": "mask_embedder.2",
}
_MODELS = {
    "detr": _detr,
    "rt_detr": _rt_detr,
    "grounding_dino": _grounding_dino,
    "owlvit": _owlvit,
    "segformer": _segformer,
    "upernet": _upernet,
    "mask2former": _mask2former,
    "depth_anything": _depth_anything,
    "metric_depth_anything": lambda t: _depth_anything(t, depth_estimation_type="metric", max_depth=20),
    "dpt": _dpt,
}


def _processor(kind, t):
    edges = {"shortest_edge": 64, "longest_edge": 96}
    square = {"height": 64, "width": 64}
    if kind == "grounding_dino":
        return t.GroundingDinoProcessor(t.GroundingDinoImageProcessor(size=edges), _bert_tokenizer(t))
    if kind == "owlvit":
        images = t.OwlViTImageProcessor(size={"height": 32, "width": 32}, crop_size={"height": 32, "width": 32})
        return t.OwlViTProcessor(images, _clip_tokenizer(t))
    depth = {"size": {"height": 56, "width": 56}, "keep_aspect_ratio": True, "ensure_multiple_of": 14}
    return {
        "detr": lambda: t.DetrImageProcessor(size=edges),
        "rt_detr": lambda: t.RTDetrImageProcessor(size=square),
        "segformer": lambda: t.SegformerImageProcessor(size=square),
        "upernet": lambda: t.SegformerImageProcessor(size=square),
        "mask2former": lambda: t.Mask2FormerImageProcessor(size=edges, size_divisor=32),
        "depth_anything": lambda: t.DPTImageProcessor(**depth),
        "metric_depth_anything": lambda: t.DPTImageProcessor(**depth),
        "dpt": lambda: t.DPTImageProcessor(size={"height": 32, "width": 32}),
    }[kind]()


def _bert_tokenizer(t):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", ".", "?", *WORDS]
    return t.BertTokenizer(vocab={word: number for number, word in enumerate(words)})


def _clip_tokenizer(t):
    letters = [*"abcdefghijklmnopqrstuvwxyz", *(f"{one}</w>" for one in "abcdefghijklmnopqrstuvwxyz")]
    words = [*letters, "<|startoftext|>", "<|endoftext|>"]
    return t.CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=12)


def torchvision_model(kind, monkeypatch):
    """A tiny detector of torchvision with five labels; its compiled operators, where they are missing, in Python."""
    from torchvision.models.detection import faster_rcnn, mask_rcnn
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign, boxes

    if not torchvision.extension._has_ops():
        monkeypatch.setattr(boxes, "nms", _nms)
        # torchvision would compile it, which takes minutes.
        align = sys.modules["torchvision.ops.roi_align"]
        monkeypatch.setattr(align, "_roi_align", getattr(align._roi_align, "__wrapped__", align._roi_align))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = torch.nn.Sequential(torch.nn.Conv2d(3, 32, 8, 8), torch.nn.ReLU())
        body.out_channels = 32
        sizes, options = AnchorGenerator(((8, 16, 32),), ((0.5, 1.0, 2.0),)), {"min_size": 64, "max_size": 96}
        if kind == "FCOS":
            options |= {"anchor_generator": AnchorGenerator(((8,),), ((1.0,),)), "score_thresh": 0.01, "num_classes": 5}
        elif kind == "RetinaNet":
            options |= {"anchor_generator": sizes, "score_thresh": 0.001, "num_classes": 5}
        else:
            options |= {
                "rpn_anchor_generator": sizes,
                "rpn_post_nms_top_n_test": 16,
                "box_roi_pool": MultiScaleRoIAlign(["0"], 3, 2),
                "box_head": faster_rcnn.TwoMLPHead(32 * 9, 16),
                "box_predictor": faster_rcnn.FastRCNNPredictor(16, 5),
                "box_score_thresh": 0.01,
            }
        if kind == "MaskRCNN":
            options |= {
                "mask_roi_pool": MultiScaleRoIAlign(["0"], 6, 2),
                "mask_head": mask_rcnn.MaskRCNNHeads(32, (16,), 1),
                "mask_predictor": mask_rcnn.MaskRCNNPredictor(16, 16, 5),
            }
        model = getattr(torchvision.models.detection, kind)(body, **options)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith(("cls_logits.bias", "cls_score.bias")):
                    parameter.zero_()
                elif name.endswith(("cls_logits.weight", "cls_score.weight")):
                    parameter.normal_(0, 1)
    return model.eval()


def _nms(corners, scores, threshold):
    overlap, gone, kept = torchvision.ops.box_iou(corners, corners), torch.zeros(len(corners), dtype=torch.bool), []
    for one in scores.argsort(descending=True).tolist():
        if not gone[one]:
            kept.append(one)
            gone |= overlap[one] > threshold
    return torch.tensor(kept, dtype=torch.long)
