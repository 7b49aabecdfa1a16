"""Networks for semantic segmentation: a class for every pixel. One family per file, as in ``models``.

``apply(variables, images, train=...)`` gives logits ``[n, h, w, num_classes]`` float32 for images ``[n, h, w, 3]`` of
any size, and endpoints; auxiliary logits are endpoints of the same shape, with weights in the loss in ``aux_weights``.
"""
