"""SENet-154 in timm's files."""

from cnnjax.weights.layouts import Layout

_TIMM = Layout(  # of legacy_senet154
    (
        (r"stem(\d)/conv", "layer0.conv{1}"),
        (r"stem(\d)/norm", "layer0.bn{1}"),
        (r"stage(\d)/block(\d+)/shortcut/conv", "layer{1}.{2-1}.downsample.0"),
        (r"stage(\d)/block(\d+)/shortcut/norm", "layer{1}.{2-1}.downsample.1"),
        (r"stage(\d)/block(\d+)/conv(\d)/conv", "layer{1}.{2-1}.conv{3}"),
        (r"stage(\d)/block(\d+)/conv(\d)/norm", "layer{1}.{2-1}.bn{3}"),
        (r"stage(\d)/block(\d+)/se/reduce", "layer{1}.{2-1}.se_module.fc1"),
        (r"stage(\d)/block(\d+)/se/expand", "layer{1}.{2-1}.se_module.fc2"),
        (r"head/dense", "last_linear"),
    ),
    epsilon=1e-5,
)

LAYOUTS = {"SENet": {"timm": _TIMM}}
