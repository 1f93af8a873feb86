"""A sample of the campaign of wrong inputs (`benchmarks/campaign`), each through the real command line."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_wrong_inputs_give_one_line_each_and_leave_nothing(tmp_path: Path) -> None:
    record = tmp_path / "campaign.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "campaign"), "--small", "--json", str(record)]
    done = subprocess.run([*command, "--work", str(tmp_path)], capture_output=True, text=True, check=False)
    assert record.exists(), done.stderr[-3000:]
    result = json.loads(record.read_text())
    assert result["failures"] == []
    assert result["tried"] >= 60
    assert result["one_line"] > 40 and result["worked"] > 5
