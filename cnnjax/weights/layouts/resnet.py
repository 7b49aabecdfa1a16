"""ResNet and SE-ResNet in files of Keras, torchvision and timm, pre-activation ResNet in files of Keras."""

from cnnjax.weights.layouts import Layout

_KERAS = Layout(
    (
        (r"stem/conv", "conv1_conv"),
        (r"stem/norm", "conv1_bn"),
        (r"stage(\d)/block(\d+)/shortcut/conv", "conv{1+1}_block{2}_0_conv"),
        (r"stage(\d)/block(\d+)/shortcut/norm", "conv{1+1}_block{2}_0_bn"),
        (r"stage(\d)/block(\d+)/conv(\d)/conv", "conv{1+1}_block{2}_{3}_conv"),
        (r"stage(\d)/block(\d+)/conv(\d)/norm", "conv{1+1}_block{2}_{3}_bn"),
        (r"head/dense", "predictions"),
    ),
    epsilon=1.001e-5,
    fields={"stride_first": True, "reduction": None},
)
_KERAS_V2 = Layout(
    (
        (r"stem", "conv1_conv"),
        (r"norm", "post_bn"),
        (r"stage(\d)/block(\d+)/norm1", "conv{1+1}_block{2}_preact_bn"),
        (r"stage(\d)/block(\d+)/norm(\d)", "conv{1+1}_block{2}_{3-1}_bn"),
        (r"stage(\d)/block(\d+)/conv(\d)", "conv{1+1}_block{2}_{3}_conv"),
        (r"stage(\d)/block(\d+)/shortcut", "conv{1+1}_block{2}_0_conv"),
        (r"head/dense", "predictions"),
    ),
    epsilon=1.001e-5,
)
# The files on keras.io are older: Keras called the head so then.
_KERAS_IO, _KERAS_IO_V2 = (x._replace(keys=((r"head/dense", "probs"), *x.keys[:-1])) for x in (_KERAS, _KERAS_V2))
# torchvision's, and timm's ResNet and SE-ResNet.
TORCH = Layout(
    (
        (r"stem/conv", "conv1"),
        (r"stem/norm", "bn1"),
        (r"stage(\d)/block(\d+)/shortcut/conv", "layer{1}.{2-1}.downsample.0"),
        (r"stage(\d)/block(\d+)/shortcut/norm", "layer{1}.{2-1}.downsample.1"),
        (r"stage(\d)/block(\d+)/conv(\d)/conv", "layer{1}.{2-1}.conv{3}"),
        (r"stage(\d)/block(\d+)/conv(\d)/norm", "layer{1}.{2-1}.bn{3}"),
        (r"stage(\d)/block(\d+)/se/reduce", "layer{1}.{2-1}.se.fc1"),
        (r"stage(\d)/block(\d+)/se/expand", "layer{1}.{2-1}.se.fc2"),
        (r"head/dense", "fc"),
    ),
    epsilon=1e-5,
    fields={"stride_first": False},
)
# torch.nn.Sequential(*resnet.children()), often without the last, names the children by their numbers.
_CHILDREN = TORCH._replace(
    keys=(
        (r"stem/conv", "0"),
        (r"stem/norm", "1"),
        *(
            (ours.replace(r"stage(\d)", rf"stage({i})"), theirs.replace("layer{1}", str(i + 3)))
            for ours, theirs in TORCH.keys
            for i in range(1, 5)
            if ours.startswith("stage")
        ),
        (r"head/dense", "9"),
    )
)

LAYOUTS = {
    "ResNet": {"keras": _KERAS, "keras.io": _KERAS_IO, "torch": TORCH, "torch children": _CHILDREN},
    "ResNetV2": {"keras": _KERAS_V2, "keras.io": _KERAS_IO_V2},
}
