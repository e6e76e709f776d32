"""The files that are images. Imports no torch."""

# Of files that are images; those without a suffix are images if they begin as one.
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".gif", ".tif", ".tiff", ".webp", ".avif",
    ".jp2", ".j2k", ".jpx", ".tga", ".pbm", ".pgm", ".ppm", ".pnm", ".xbm", ".pcx",
)  # fmt: skip
IMAGE_FORMATS = "JPEG, PNG, GIF, TIFF, BMP, WebP, AVIF, JPEG 2000, TGA, PNM, PCX or XBM"  # in words
