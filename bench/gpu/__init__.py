"""The run on a GPU: correctness on the device, measured peaks, timings and tuning, in one command (make gpu)."""
