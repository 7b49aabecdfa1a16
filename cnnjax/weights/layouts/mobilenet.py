"""MobileNet in files of Keras and timm, MobileNetV2 in files of Keras, torchvision and timm."""

from cnnjax.weights.layouts import Layout

_KERAS = Layout(
    (
        (r"stem/conv", "conv1"),
        (r"stem/norm", "conv1_bn"),
        (r"block(\d+)/depthwise/conv", "conv_dw_{1}"),
        (r"block(\d+)/depthwise/norm", "conv_dw_{1}_bn"),
        (r"block(\d+)/pointwise/conv", "conv_pw_{1}"),
        (r"block(\d+)/pointwise/norm", "conv_pw_{1}_bn"),
        (r"head/dense", "conv_preds"),
    ),
    epsilon=1e-3,
    fields={"padding": None},
)
_ENDS_V2 = (
    (r"stem/conv", "Conv1"),
    (r"stem/norm", "bn_Conv1"),
    (r"last/conv", "Conv_1"),
    (r"last/norm", "Conv_1_bn"),
)
_BLOCKS_V2 = (
    (r"block1/(\w+)/conv", "expanded_conv_{1}"),
    (r"block1/(\w+)/norm", "expanded_conv_{1}_BN"),
    (r"block(\d+)/(\w+)/conv", "block_{1-1}_{2}"),
    (r"block(\d+)/(\w+)/norm", "block_{1-1}_{2}_BN"),
)
_KERAS_V2 = Layout((*_ENDS_V2, *_BLOCKS_V2, (r"head/dense", "predictions")), epsilon=1e-3, fields={"padding": "SAME"})
# The files on keras.io have older names: that of width 1 for 224 pixels the first, others the second.
_KERAS_IO_V2 = _KERAS_V2._replace(
    keys=(
        *_ENDS_V2,
        (r"block(\d+)/(\w+)/conv", "mobl{1-1}_conv_{1-1}_{2}"),
        (r"block(\d+)/(\w+)/norm", "bn{1-1}_conv_{1-1}_bn_{2}"),
        (r"head/dense", "Logits"),
    )
)
_KERAS_IO_V2_OTHERS = _KERAS_V2._replace(keys=(*_ENDS_V2, *_BLOCKS_V2, (r"head/dense", "Logits")))
_TIMM = Layout(
    (
        (r"stem/conv", "conv_stem"),
        (r"stem/norm", "bn1"),
        *(
            (f"block{i}/{ours}", f"blocks.{stage}.{theirs}")
            for i, stage in enumerate(
                ("0.0", "1.0", "1.1", "2.0", "2.1", *(f"3.{j}" for j in range(6)), "4.0", "4.1"), 1
            )
            for ours, theirs in (
                ("depthwise/conv", "conv_dw"),
                ("depthwise/norm", "bn1"),
                ("pointwise/conv", "conv_pw"),
                ("pointwise/norm", "bn2"),
            )
        ),
        (r"head/dense", "classifier"),
    ),
    epsilon=1e-5,
    fields={"padding": 1},
)
_TORCHVISION_V2 = Layout(
    (
        (r"stem/conv", "features.0.0"),
        (r"stem/norm", "features.0.1"),
        (r"block1/depthwise/conv", "features.1.conv.0.0"),  # it does not expand
        (r"block1/depthwise/norm", "features.1.conv.0.1"),
        (r"block1/project/conv", "features.1.conv.1"),
        (r"block1/project/norm", "features.1.conv.2"),
        (r"block(\d+)/expand/conv", "features.{1}.conv.0.0"),
        (r"block(\d+)/expand/norm", "features.{1}.conv.0.1"),
        (r"block(\d+)/depthwise/conv", "features.{1}.conv.1.0"),
        (r"block(\d+)/depthwise/norm", "features.{1}.conv.1.1"),
        (r"block(\d+)/project/conv", "features.{1}.conv.2"),
        (r"block(\d+)/project/norm", "features.{1}.conv.3"),
        (r"last/conv", "features.18.0"),
        (r"last/norm", "features.18.1"),
        (r"head/dense", "classifier.1"),
    ),
    epsilon=1e-5,
    fields={"padding": 1},
)

_FIRST = (
    ("depthwise/conv", "conv_dw"),
    ("depthwise/norm", "bn1"),
    ("project/conv", "conv_pw"),
    ("project/norm", "bn2"),
)
_OTHERS = (
    *(("expand/conv", "conv_pw"), ("expand/norm", "bn1"), ("depthwise/conv", "conv_dw"), ("depthwise/norm", "bn2")),
    *(("project/conv", "conv_pwl"), ("project/norm", "bn3")),
)
_TIMM_V2 = Layout(
    (
        (r"stem/conv", "conv_stem"),
        (r"stem/norm", "bn1"),
        *(
            (f"block{i}/{ours}", f"blocks.{stage}.{block}.{theirs}")
            for i, (stage, block) in enumerate(
                ((stage, block) for stage, blocks in enumerate((1, 2, 3, 4, 3, 3, 1)) for block in range(blocks)), 1
            )
            for ours, theirs in (_OTHERS if i > 1 else _FIRST)
        ),
        (r"last/conv", "conv_head"),
        (r"last/norm", "bn2"),
        (r"head/dense", "classifier"),
    ),
    epsilon=1e-5,
    fields={"padding": 1},
)

LAYOUTS = {
    "MobileNet": {"keras": _KERAS, "timm": _TIMM},
    "MobileNetV2": {
        "keras": _KERAS_V2,
        "keras.io": _KERAS_IO_V2,
        "keras.io others": _KERAS_IO_V2_OTHERS,
        "torchvision": _TORCHVISION_V2,
        "timm": _TIMM_V2,
    },
}
