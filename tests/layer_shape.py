"""The shapes of a net's layers, computed from its architecture alone."""

from overfeat.models.receptive_field import SlidingWindow, output_size


def layer_shape(architecture, number, height, width, classes):
    """(channels, height, width) of a layer's output for an image of height x width."""
    shape = (3, height, width)
    for layer in architecture.layers[: number + 1]:
        channels, step = shape[0], None
        if layer.kind in ("pad", "conv", "pool"):
            conv = architecture.convs[layer.index]
        if layer.kind == "pad":
            step = SlidingWindow(1, 1, conv.pad)
        elif layer.kind == "conv":
            channels, step = conv.channels, SlidingWindow(conv.kernel, conv.stride)
        elif layer.kind == "pool":
            step = SlidingWindow(conv.pool, conv.pool)
        elif layer.kind == "full":
            channels = (*architecture.hidden, classes)[layer.index]
            step = SlidingWindow(architecture.kernel if layer.index == 0 else 1)
        if step:
            shape = (channels, output_size([step], shape[1]), output_size([step], shape[2]))
    return shape
