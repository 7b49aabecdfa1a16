"""Sources of images, the catalog of data sets, and the pipeline that turns (seed, step) into a batch."""
