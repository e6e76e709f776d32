"""The server under load, and frames of a camera."""

from bench.pages.tables import measured_on, table


def page(results: dict) -> str:
    load = results["load"]
    rows = [
        [name, f"{live['frames/s']:.1f}", *_of_page(results.get("page", {}).get(name))]
        for name, live in results["live"].items()
    ]
    stages = [
        [name, ", ".join(f"{stage} {ms:.1f}" for stage, ms in live["ms"].items())]
        for name, live in results["live"].items()
    ]
    answers = [[_name(answer), f"{count:,}"] for answer, count in load["answers"].items()]
    memory = load["memory"]
    before, after = load["loop"]
    return f"""# The server

{measured_on(results)} The load average before was {results["load average"]:.1f}: what else ran
on the machine shares its cores with all that follows.

## Frames of 320x240 pixels

One client whose next frame is sent when the answer to the last one is there: over the stream alone, and on the page in
headless Chromium on the same machine, with its own time a frame (encoding and drawing, the median).

{table(["", "frames/s", "frames/s on the page", "ms of the page"], rows)}

Milliseconds a frame by stage, in the server:

{table(["", "ms"], stages)}

## Load

{load["clients"]} clients at once for {load["seconds"]:.0f} s on loopback, on the same cores, classify frames of 320x240
pixels with SqueezeNet at scale 1.0; some leave early, send junk or more than is allowed:
{load["requests/s"]:.1f} answers/s, {load["ratio"]:.2f} of a bare loop over the same images ({before:.1f} and
{after:.1f} images/s before and after); median {load["p50"]:.2f} s, 99th percentile {load["p99"]:.2f} s. The server's
memory was {memory[0]:.0f} MiB after 5 s, {max(memory):.0f} MiB at its largest and {memory[-1]:.0f} MiB at the end; it
stopped with exit status {load["exit status"]}.

{table(["answer", "requests"], answers)}
"""


def _of_page(rates: dict | None) -> list[str]:
    return ["", ""] if rates is None else [f"{rates['frames/s']:.1f}", f"{rates['own ms']:.1f}"]


def _name(answer: str) -> str:
    names = {"left": "the client left", "refused": "too large, refused while it was sent", "200": "200, classified"}
    return names.get(answer, answer)
