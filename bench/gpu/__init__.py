"""The run on a GPU: correctness on the device, ceilings, timings and tuning, in one command (make gpu)."""
