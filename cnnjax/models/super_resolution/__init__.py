"""Networks for super-resolution: images of more pixels. One family per file, as in ``models``.

``apply(variables, images, train=...)`` gives images ``[n, h · factor, w · factor, c]`` float32 for images
``[n, h, w, c]`` of any size, on the same scale, and endpoints.
"""
