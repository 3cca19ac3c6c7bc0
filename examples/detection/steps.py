"""What `make detection` and `make segmentation` do alike: train where that has not been done, then soup's commands."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
LATER = ("run.py", "steps.py", "report.py", "pictures.py")  # what changes no checkpoint


def trained(out: Path, script: Path, *arguments: str) -> str:
    """Run `script`, which writes `out`/checkpoints, unless these arguments did before; the last figure it printed."""
    done = out / "trained.json"
    sources = {HERE / "scenes.py", *(path for path in script.parent.glob("*.py") if path.name not in LATER)}
    hashes = sorted(hashlib.sha256(path.read_bytes()).hexdigest() for path in sources)
    settings = {"arguments": list(arguments), "scripts": hashes}
    last = json.loads(done.read_text()) if done.exists() else {}
    if last.get("settings") == settings:
        print(f"{out}/checkpoints: trained before, by the same scripts with the same arguments")
        return str(last["figure"])
    shutil.rmtree(out / "checkpoints", ignore_errors=True)
    log = run(sys.executable, str(script), "--out", str(out), *arguments)
    figure = re.findall(r"val m\w+ ([\d.]+)", log)[-1]
    done.write_text(json.dumps({"settings": settings, "figure": figure}))
    return figure


def released(out: Path) -> None:
    """soup check, build, export and verify: ends with the first exit code that is not 0."""
    engine = ["--trt", "--compute-capability", "8.6,8.9"]
    if importlib.util.find_spec("tensorrt_rtx") is None:
        print("tensorrt_rtx has no wheel for this machine: the release is made without an engine")
        engine = []
    run("soup", "check", "--val", f"{out}/val.yaml", "-o", f"{out}/soup")
    run("soup", "build", "--val", f"{out}/val.yaml", "-o", f"{out}/soup")
    run("soup", "export", f"{out}/soup", *engine)
    run("soup", "verify", f"{out}/soup/release")


def run(*command: str) -> str:
    """Show the command and what it prints; give back its standard output."""
    shown = " ".join(["python", *command[1:]] if command[0] == sys.executable else command)
    print(f"\n$ {shown}", flush=True)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as soup sets it: spinning threads slow a busy machine
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        sys.exit(process.returncode)
    return "".join(lines)
