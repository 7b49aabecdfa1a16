"""GoogLeNet against torchvision, with BatchNorm as published there, and without, built from its parts."""

import importlib

import peers


def outputs(result):
    return [result.logits, result.aux_logits1, result.aux_logits2] if isinstance(result, tuple) else [result]


def check(name, make_peer, sizes, train_size, **options):
    peers.check_torch(
        name,
        make_peer,
        sizes,
        train_size=train_size,
        outputs=outputs,
        dropout=0.0,
        aux_dropout=0.0,
        **options,
    )


def test_googlenet_bn(torchvision):
    def make():
        return torchvision.models.GoogLeNet(init_weights=False, dropout=0.0, dropout_aux=0.0)

    # On 97 pixels the auxiliary heads divide 6×6 feature maps into 4×4 windows.
    check("googlenet_bn", make, (64, 97), train_size=97, saved="safetensors")


def original(torchvision):
    """Network of 2014 from torchvision's: other blocks, normalization at the first two poolings, last pooling 3×3."""
    from torch import nn

    googlenet = importlib.import_module("torchvision.models.googlenet")  # its package has a function of this name

    class Conv(nn.Module):
        def __init__(self, channels, features, **options):
            super().__init__()
            self.conv = nn.Conv2d(channels, features, **options)

        def forward(self, x):
            return self.conv(x).relu()

    class Inception(googlenet.Inception):
        def __init__(self, channels, *features):
            super().__init__(channels, *features, conv_block=Conv)
            self.branch3[1] = Conv(features[3], features[4], kernel_size=5, padding=2)

    class Aux(googlenet.InceptionAux):
        def __init__(self, channels, classes, dropout):
            super().__init__(channels, classes, Conv, dropout)
            self.pool = nn.AvgPool2d(5, 3)

        def forward(self, x):
            x = self.conv(self.pool(x)).flatten(1)
            return self.fc2(self.fc1(x).relu())

    peer = googlenet.GoogLeNet(init_weights=False, blocks=[Conv, Inception, Aux], dropout=0.0)
    norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75, k=1.0)
    peer.maxpool1 = nn.Sequential(peer.maxpool1, norm)
    peer.maxpool2 = nn.Sequential(norm, peer.maxpool2)
    peer.maxpool4 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
    return peer


def test_googlenet(torchvision):
    check("googlenet", lambda: original(torchvision), (64, 97), train_size=224, batch=1)
