"""Xception in files of Keras and timm."""

from cnnjax.weights.layouts import Layout

# Separable convolutions of each block with a shortcut.
_BLOCKS = {"entry1": 2, "entry2": 2, "entry3": 2, **{f"middle{i}": 3 for i in range(1, 9)}, "exit1": 2}
_PROJECTED = ("entry1", "entry2", "entry3", "exit1")  # with a convolution on the shortcut
# Layers with BatchNorm, in the order in which Keras creates and therefore numbers them.
_LAYERS = (
    "stem1",
    "stem2",
    *(
        f"{block}/{layer}"
        for block, convs in _BLOCKS.items()
        for layer in ("shortcut", *(f"sepconv{i + 1}" for i in range(convs)))
        if layer != "shortcut" or block in _PROJECTED
    ),
    "exit2_sepconv1",
    "exit2_sepconv2",
)
_KERAS = Layout(
    (
        (r"stem(\d)/conv", "block1_conv{1}"),
        (r"stem(\d)/norm", "block1_conv{1}_bn"),
        *(
            (f"{block}/shortcut/{kind}", f"{theirs}_{i}" if i else theirs)
            for i, block in enumerate(_PROJECTED)
            for kind, theirs in (("conv", "conv2d"), ("norm", "batch_normalization"))
        ),
        *(
            (rf"{block}sepconv(\d)/{layer}", f"block{i}_sepconv{{1}}{theirs}")
            for i, block in enumerate((*(f"{block}/" for block in _BLOCKS), "exit2_"), start=2)
            for layer, theirs in ((r"conv/(\w+)", ":{2}_kernel"), ("norm", "_bn"))
        ),
        (r"head/dense", "predictions"),
    ),
    epsilon=1e-3,
    fields={"padding": "SAME"},
)
# The file on keras.io has the names that Keras 1 gave.
_KERAS_IO = _KERAS._replace(
    keys=(
        *((f"{layer}/norm", f"batchnormalization_{i}") for i, layer in enumerate(_LAYERS, start=1)),
        *(
            (rf"{layer}/conv/(\w+)", f"separableconvolution2d_{i}:{{1}}_kernel")
            for i, layer in enumerate((layer for layer in _LAYERS if "sepconv" in layer), start=1)
        ),
        *(
            (f"{layer}/conv", f"convolution2d_{i}")
            for i, layer in enumerate((layer for layer in _LAYERS if "sepconv" not in layer), start=1)
        ),
        (r"head/dense", "dense_2"),
    )
)
_TIMM = Layout(  # of legacy_xception
    (
        (r"stem(\d)/conv", "conv{1}"),
        (r"stem(\d)/norm", "bn{1}"),
        *(
            (f"{block}/shortcut/{kind}", f"block{i}.{theirs}")
            for i, block in enumerate(_BLOCKS, start=1)
            if block in _PROJECTED
            for kind, theirs in (("conv", "skip"), ("norm", "skipbn"))
        ),
        *(
            (f"{block}/sepconv{j + 1}/{layer}", f"block{i}.rep.{place + 3 * j - (block == 'entry1')}{part}")
            for i, (block, convs) in enumerate(_BLOCKS.items(), start=1)
            for j in range(convs)
            for layer, place, part in (  # after a ReLU, with which all but entry1 begin
                ("conv/depthwise", 1, ".conv1"),
                ("conv/pointwise", 1, ".pointwise"),
                ("norm", 2, ""),
            )
        ),
        *(
            (f"exit2_sepconv{i - 2}/{layer}", f"{theirs}{i}{part}")
            for i in (3, 4)
            for layer, theirs, part in (
                ("conv/depthwise", "conv", ".conv1"),
                ("conv/pointwise", "conv", ".pointwise"),
                ("norm", "bn", ""),
            )
        ),
        (r"head/dense", "fc"),
    ),
    epsilon=1e-5,
    fields={"padding": 1},
)

LAYOUTS = {"Xception": {"keras": _KERAS, "keras.io": _KERAS_IO, "timm": _TIMM}}
