"""Published weights: the catalog, the download into a cache, checksums, preparation of images, names of classes."""
