"""Detectors: networks that give boxes with classes, one family per file, as in ``torchvision.models.detection``."""
