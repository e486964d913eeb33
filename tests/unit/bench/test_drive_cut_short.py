"""Ctrl-C in a drive: what was measured is kept, and no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

_SCRIPT = """
import signal
# Where the tests themselves run in the background of a shell, it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
from pathlib import Path
from codriver.bench import drive
from codriver.bench.drive_inputs import Inputs
from codriver.bench.drive_live import Unwatched
from codriver.bench.drive_settings import DriveSettings
from codriver.bench.workload import Limits, chat_items

class Tells(Unwatched):
    told = False
    def moved(self, run, at_s):
        if run.fates and not self.told:
            self.told = True
            print("moved", flush=True)

drive.drive_items = lambda *given: tuple(chat_items(Limits(4.0, 2.0))[:20])
settings = DriveSettings(traces=("ideal",), seconds=60.0, policies=("codriver",))
try:
    drive.live(settings, Tells(), Inputs(Path("unused"), None))
except drive.CutShort as short:
    print(short.result.partial, len(short.result.runs[0].fates) < 20, type(short.cause).__name__, flush=True)
"""


def test_ctrl_c_keeps_what_there_is_and_leaves_no_process(tmp_path: Path) -> None:
    env = {**os.environ, "CODRIVER_ENGINE_KIND": "null", "CODRIVER_HOME": str(tmp_path), "TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", _SCRIPT]
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as drive:
        assert drive.stdout is not None
        assert drive.stdout.readline() == "moved\n"
        children = Path(f"/proc/{drive.pid}/task/{drive.pid}/children")
        pids = [int(word) for word in children.read_text("ascii").split()] if children.is_file() else []
        drive.send_signal(signal.SIGINT)
        told, wrong = drive.communicate(timeout=120)
    assert told == "True True KeyboardInterrupt\n", wrong
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)
    assert not list(tmp_path.glob("codriver-*"))
