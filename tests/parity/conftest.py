"""Peers that need the ``parity`` extra: torch, torchvision, timm."""

import bench_worker
import pytest


@pytest.fixture(scope="session")
def torchvision():
    """torchvision's models."""
    return bench_worker.import_torchvision()


@pytest.fixture(scope="session")
def timm(torchvision):
    """timm, after torchvision, which it imports."""
    import timm

    return timm
