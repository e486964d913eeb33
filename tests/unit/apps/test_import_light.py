"""``pip install codriver`` alone has a command line: no verb needs an extra before it is run."""

from __future__ import annotations

import subprocess
import sys

WITHOUT_EXTRAS = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(name)

EXTRAS = {"numpy", "sklearn", "matplotlib", "onnxruntime", "tokenizers", "openvino", "openvino_genai", "phonenumbers",
          "stdnum", "anthropic", "ollama", "openai", "torch"}
sys.meta_path.insert(0, Absent())
import codriver.apps.cli.main
import codriver.apps.cloud
import codriver.apps.vehicle
"""


def test_the_command_line_needs_no_extra() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
