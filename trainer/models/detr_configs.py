"""The published DETRs: the architecture of each in `transformers`, and the values of its configuration.

Networks are built from these values alone, without a download. They are the values that the library's
conversion scripts (convert_*.py of each architecture) give the published checkpoints; all others are the
library's defaults.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_Values = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PublishedDetr:
    """A published network.

    Attributes:
        architecture: the library's `model_type`.
        values: the configuration's values that differ from the library's defaults.
        hub: repository on the Hugging Face Hub.
        file: name of a file that the authors publish elsewhere; "" if the Hub has the only one.
        url: that file's address.
        md5: that file's MD5.
        licence: of the weights, as the publisher states it.
        mean: of each colour channel, where it differs from the architecture's.
        std: of each colour channel, where it differs from the architecture's.
    """

    architecture: str
    values: _Values
    hub: str
    file: str = ""
    url: str = ""
    md5: str = ""
    licence: str = "apache-2.0"
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None


def _resnet_vd(depths: tuple[int, ...], *, basic: bool) -> dict[str, Any]:
    shape = {"hidden_sizes": [64, 128, 256, 512], "layer_type": "basic"} if basic else {}
    backbone = {"model_type": "rt_detr_resnet", "out_indices": [2, 3, 4], "depths": list(depths), **shape}
    return {"backbone_config": backbone}


_LIVE_NORMS: _Values = {"freeze_backbone_batch_norms": False}
"""For the small networks, in which the authors' recipes let the backbone's batch norms learn."""

_SMALL_RT: _Values = {"encoder_in_channels": [128, 256, 512], "hidden_expansion": 0.5}
_RT_DETR_V2: Mapping[str, _Values] = {
    "r18": {**_resnet_vd((2, 2, 2, 2), basic=True), **_SMALL_RT, **_LIVE_NORMS, "decoder_layers": 3},
    "r34": {**_resnet_vd((3, 4, 6, 3), basic=True), **_SMALL_RT, **_LIVE_NORMS, "decoder_layers": 4},
    "r50": _resnet_vd((3, 4, 6, 3), basic=False),
    "r101": {
        **_resnet_vd((3, 4, 23, 3), basic=False),
        "encoder_ffn_dim": 2048,
        "encoder_hidden_dim": 384,
        "decoder_in_channels": [384, 384, 384],
    },
}


def _hgnet(
    stem: int,
    stages: tuple[tuple[int, int, int, int], ...],
    layers: int,
    **values: Any,
) -> dict[str, Any]:
    """An HGNetV2.

    Args:
        stem: channels within the stem.
        stages: of each, the channels that come in, within, and out, and the number of blocks.
        layers: in each block.
    """
    come_in, within, out, blocks = (list(column) for column in zip(*stages, strict=True))
    return {
        "model_type": "hgnet_v2",
        "hidden_sizes": out,
        "stem_channels": [3, stem, come_in[0]],
        "stage_in_channels": come_in,
        "stage_mid_channels": within,
        "stage_out_channels": out,
        "stage_num_blocks": blocks,
        "stage_downsample": [False, True, True, True],
        "stage_light_block": [False, False, True, True],
        "stage_kernel_size": [3, 3, 5, 5],
        "stage_numb_of_layers": [layers] * 4,
        "out_indices": [2, 3, 4],
        **values,
    }


_B0 = ((16, 16, 64, 1), (64, 32, 256, 1), (256, 64, 512, 2), (512, 128, 1024, 1))
_B2 = ((32, 32, 96, 1), (96, 64, 384, 1), (384, 128, 768, 3), (768, 256, 1536, 1))
_B4 = ((48, 48, 128, 1), (128, 96, 512, 1), (512, 192, 1024, 3), (1024, 384, 2048, 1))
_B5 = ((64, 64, 128, 1), (128, 128, 512, 2), (512, 256, 1024, 5), (1024, 512, 2048, 2))
_WITH_LAB = {"use_learnable_affine_block": True}

_D_FINE: Mapping[str, _Values] = {
    "n": {
        "backbone_config": _hgnet(16, _B0, 3, **{**_WITH_LAB, "out_indices": [3, 4]}),
        "num_feature_levels": 2,
        "encoder_ffn_dim": 512,
        "encode_proj_layers": [1],
        "d_model": 128,
        "encoder_hidden_dim": 128,
        "decoder_ffn_dim": 512,
        "encoder_in_channels": [512, 1024],
        "decoder_n_points": [6, 6],
        "decoder_in_channels": [128, 128],
        "feat_strides": [16, 32],
        "depth_mult": 0.5,
        **_LIVE_NORMS,
        "decoder_layers": 3,
        "hidden_expansion": 0.34,
    },
    "s": {
        "backbone_config": _hgnet(16, _B0, 3, **_WITH_LAB),
        "encoder_in_channels": [256, 512, 1024],
        "decoder_n_points": [3, 6, 3],
        "depth_mult": 0.34,
        **_LIVE_NORMS,
        "decoder_layers": 3,
        "hidden_expansion": 0.5,
    },
    "m": {
        "backbone_config": _hgnet(24, _B2, 4, **_WITH_LAB),
        "encoder_in_channels": [384, 768, 1536],
        "decoder_n_points": [3, 6, 3],
        "depth_mult": 0.67,
        **_LIVE_NORMS,
        "decoder_layers": 4,
        "hidden_expansion": 1.0,
    },
    "l": {
        "backbone_config": _hgnet(32, _B4, 6),
        "encoder_in_channels": [512, 1024, 2048],
        "decoder_n_points": [3, 6, 3],
        "decoder_layers": 6,
        "hidden_expansion": 1.0,
    },
    "x": {
        "backbone_config": _hgnet(32, _B5, 6),
        "encoder_in_channels": [512, 1024, 2048],
        "encoder_hidden_dim": 384,
        "encoder_ffn_dim": 2048,
        "decoder_n_points": [3, 6, 3],
        "decoder_in_channels": [384, 384, 384],
        "decoder_layers": 6,
        "hidden_expansion": 1.0,
    },
}
_D_FINE_SIZES = {"n": "nano", "s": "small", "m": "medium", "l": "large", "x": "xlarge"}


def _rf_detr(side: int, patch: int, windows: int, layers: int, queries: int, **values: Any) -> dict[str, Any]:
    backbone = {
        "model_type": "rf_detr_dinov2",
        "hidden_size": 384,
        "num_attention_heads": 6,
        "image_size": side,
        "patch_size": patch,
        "num_windows": windows,
        "out_features": ["stage3", "stage6", "stage9", "stage12"],
    }
    return {
        "backbone_config": backbone,
        "decoder_layers": layers,
        "num_queries": queries,
        "decoder_n_points": 2,
        "dropout": 0.0,  # as the authors train it
        **values,
    }


_MASKS = {"class_loss_coefficient": 5.0}
_RF_DETR: Mapping[str, _Values] = {
    "nano": _rf_detr(384, 16, 2, 2, 300),
    "small": _rf_detr(512, 16, 2, 3, 300),
    "medium": _rf_detr(576, 16, 2, 4, 300),
    "large": _rf_detr(704, 16, 2, 4, 300),
    "seg-nano": _rf_detr(312, 12, 1, 4, 100, **_MASKS),
    "seg-small": _rf_detr(384, 12, 2, 4, 100, **_MASKS),
    "seg-medium": _rf_detr(432, 12, 2, 5, 200, **_MASKS),
    "seg-large": _rf_detr(504, 12, 2, 5, 200, **_MASKS),
    "seg-xlarge": _rf_detr(624, 12, 2, 6, 300, **_MASKS),
    "seg-2xlarge": _rf_detr(768, 12, 2, 6, 300, **_MASKS),
}
_BEST = "checkpoint_best_regular.pth"
_RF_DETR_FILES = {
    "nano": ("rf-detr-nano.pth", f"nano_coco/{_BEST}", "fb6504cce7fbdc783f7a46991f07639f"),
    "small": ("rf-detr-small.pth", f"small_coco/{_BEST}", "fb37061c1af7bace359c91b723a8d5c1"),
    "medium": ("rf-detr-medium.pth", f"medium_coco/{_BEST}", "7223f764a87b863f02eb8d52bf0ce2ee"),
    "large": ("rf-detr-large-2026.pth", "rf-detr-large-2026.pth", "5cb72153541cbcb9aa6efa26222acc75"),
    "seg-nano": ("rf-detr-seg-nano.pt", "rf-detr-seg-n-ft.pth", "9995497791d0ff1664a1d9ddee9cfd20"),
    "seg-small": ("rf-detr-seg-small.pt", "rf-detr-seg-s-ft.pth", "0a2a3006381d0c42853907e700eadd08"),
    "seg-medium": ("rf-detr-seg-medium.pt", "rf-detr-seg-m-ft.pth", "a49af1562c3719227ad43d0ca53b4c7a"),
    "seg-large": ("rf-detr-seg-large.pt", "rf-detr-seg-l-ft.pth", "275f7b094909544ed2841c94a677d07e"),
    "seg-xlarge": ("rf-detr-seg-xlarge.pt", "rf-detr-seg-xl-ft.pth", "3693b35d0eea86ebb3e0444f4a611fba"),
    "seg-2xlarge": ("rf-detr-seg-xxlarge.pt", "rf-detr-seg-2xl-ft.pth", "040bc3412af840fa8a47e0ff69b552ba"),
}
"""The authors' file of each RF-DETR: its name, its path at their address, and its MD5."""


def _lw_detr(width: int, layers: int, queries: int, *, large: bool = False) -> dict[str, Any]:
    # The conversion script counts the blocks that give feature maps from 0, of which the last is one. The
    # library's backbone counts the image's embedding as the first, so here it is one more.
    blocks = {6: ([0, 2, 4], [2, 4, 6]), 10: ([0, 1, 3, 6, 7, 9], [3, 5, 6, 10])}[layers]
    backbone = {
        "model_type": "lw_detr_vit",
        "image_size": 1024,
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": 12,
        "window_block_indices": blocks[0],
        "out_indices": blocks[1],
    }
    return {
        "backbone_config": backbone,
        "projector_scale_factors": [2.0, 0.5] if large else [1.0],
        "num_queries": queries,
        "decoder_layers": 3,
        "decoder_self_attention_heads": 12 if large else 8,
        "decoder_cross_attention_heads": 24 if large else 16,
        "decoder_n_points": 4 if large else 2,
        "d_model": 384 if large else 256,
    }


_LW_DETR: Mapping[str, _Values] = {
    "tiny": _lw_detr(192, 6, 100),
    "small": _lw_detr(192, 10, 300),
    "medium": _lw_detr(384, 10, 300),
    "large": _lw_detr(384, 10, 300, large=True),
    "xlarge": _lw_detr(768, 10, 300, large=True),
}

_RESNET_50: _Values = {
    "model_type": "timm_backbone",
    "backbone": "resnet50",
    "num_channels": 3,
    "features_only": True,
    "use_pretrained_backbone": False,
}
_DEFORMABLE: _Values = {"backbone_config": {**_RESNET_50, "out_indices": [2, 3, 4]}}
_REFINED: _Values = {**_DEFORMABLE, "with_box_refine": True}
_CONDITIONAL: _Values = {"backbone_config": {**_RESNET_50, "out_indices": [4]}}

_YOLOS: Mapping[str, _Values] = {
    "tiny": {
        "hidden_size": 192,
        "intermediate_size": 768,
        "num_attention_heads": 3,
        "image_size": [800, 1333],
        "use_mid_position_embeddings": False,
    },
    "small": {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6},
    "base": {"image_size": [800, 1344]},
}

_DEIM: _Values = {
    "focal_loss_gamma": 1.5,  # the authors' exponent of the class loss, which the script leaves at 2
    "decoder_activation_function": "silu",
}


def _dinov3(width: int, heads: int, **values: Any) -> dict[str, Any]:
    """A DEIMv2 on a small ViT that its authors distilled from DINOv3's."""
    backbone = {
        "model_type": "dinov3_vit",
        "hidden_size": width,
        "num_attention_heads": heads,
        "num_hidden_layers": 12,
        "intermediate_size": 4 * width,
        "layerscale_value": 1.0,
        "num_register_tokens": 0,
        "pos_embed_rescale": None,
        "key_bias": False,
        "rope_theta": 100.0,
        "out_indices": [6, 9, 12],
        "apply_layernorm": False,
        "reshape_hidden_states": True,
    }
    return {
        **_DEIM,
        "backbone_config": backbone,
        "encoder_in_channels": [width] * 3,
        "encoder_hidden_dim": width,
        "encoder_ffn_dim": 512,
        "encoder_has_trailing_conv": False,
        "d_model": width,
        "decoder_in_channels": [width] * 3,
        "decoder_ffn_dim": 512,
        "decoder_layers": 4,
        "decoder_n_points": [3, 6, 3],
        **values,
    }


_DEIM_V2_N: _Values = {
    **_DEIM,
    "backbone_config": _hgnet(16, _B0, 3, **{**_WITH_LAB, "out_indices": [3, 4]}),
    **_LIVE_NORMS,
    "num_feature_levels": 2,
    "feat_strides": [16, 32],
    "encoder_in_channels": [512, 1024],
    "encoder_hidden_dim": 128,
    "encoder_ffn_dim": 512,
    "encode_proj_layers": [1],
    "hidden_expansion": 0.34,
    "depth_mult": 0.5,
    "d_model": 128,
    "decoder_in_channels": [128, 128],
    "decoder_ffn_dim": 512,
    "decoder_layers": 3,
    "decoder_n_points": [6, 6],
}

PUBLISHED: Mapping[str, PublishedDetr] = {
    **{
        f"rtdetrv2-{size}": PublishedDetr("rt_detr_v2", values, f"PekingU/rtdetr_v2_{size}vd")
        for size, values in _RT_DETR_V2.items()
    },
    **{
        f"dfine-{size}": PublishedDetr("d_fine", values, f"ustc-community/dfine-{_D_FINE_SIZES[size]}-coco")
        for size, values in _D_FINE.items()
    },
    **{
        f"rfdetr-{size}": PublishedDetr(
            "rf_detr",
            _RF_DETR[size],
            f"Roboflow/rf-detr-{size.replace('2xlarge', 'xxlarge')}",
            file,
            f"https://storage.googleapis.com/rfdetr/{path}",
            md5,
        )
        for size, (file, path, md5) in _RF_DETR_FILES.items()
    },
    **{
        f"lwdetr-{size}": PublishedDetr("lw_detr", values, f"AnnaZhang/lwdetr_{size}_60e_coco")
        for size, values in _LW_DETR.items()
    },
    **{
        f"yolos-{size}": PublishedDetr("yolos", values, f"hustvl/yolos-{size}")
        for size, values in _YOLOS.items()
    },
    # The authors' own files have another layout; the library's own tests use these.
    "deimv2-n": PublishedDetr("deimv2", _DEIM_V2_N, "harshaljanjani/DEIMv2_HGNetv2_N_COCO_Transformers"),
    "deimv2-s": PublishedDetr(
        "deimv2",
        _dinov3(192, 3, depth_mult=0.67, hidden_expansion=0.34),
        "harshaljanjani/DEIMv2_DINOv3_S_COCO_Transformers",
        licence="Apache-2.0, DINOv3 License",
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
    ),
    "deformable-detr": PublishedDetr("deformable_detr", _DEFORMABLE, "SenseTime/deformable-detr"),
    "deformable-detr-refine": PublishedDetr(
        "deformable_detr", _REFINED, "SenseTime/deformable-detr-with-box-refine"
    ),
    "deformable-detr-two-stage": PublishedDetr(
        "deformable_detr",
        {**_REFINED, "two_stage": True},
        "SenseTime/deformable-detr-with-box-refine-two-stage",
    ),
    "conditional-detr-r50": PublishedDetr(
        "conditional_detr", _CONDITIONAL, "microsoft/conditional-detr-resnet-50"
    ),
}
"""Every published network by its model's name."""
