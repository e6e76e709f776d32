"""An evaluation that is killed and run again, for tests."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path


def check_a_killed_evaluation_goes_on(arguments: list, folder: Path) -> None:
    """At most the image in work is lost, and the results are those of an unbroken run.

    arguments: of `overfeat evaluate`, without -o.
    """
    command = [sys.executable, "-m", "overfeat", "evaluate", *map(str, arguments), "--device", "cpu", "-o"]
    complete, results, journal = folder / "complete.json", folder / "r.json", folder / ".images-r.json"
    assert subprocess.run([*command, complete], capture_output=True).returncode == 0
    process = subprocess.Popen([*command, results], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and not (journal.exists() and len(journal.read_text().splitlines()) > 2):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not results.exists() and journal.exists()
    again = subprocess.run([*command, results], capture_output=True, text=True)
    assert again.returncode == 0 and "images are done already" in again.stderr
    assert not journal.exists() and json.loads(results.read_text()) == json.loads(complete.read_text())
