"""Reading images and annotations, cropping, and the made-up scenes."""
