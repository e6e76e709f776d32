"""Reading images and annotations, resizing, caching, data sets, and synthetic images."""
