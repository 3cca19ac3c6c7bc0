"""`make demo`: train real checkpoints, then soup check, build, export --trt and verify, as a user would type them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
OUT = Path("demo-out")


def main() -> None:
    """Everything lands in demo-out/; ends with the first command's exit code that is not 0."""
    started = time.monotonic()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as soup sets it: spinning threads slow a busy machine
    OUT.mkdir(exist_ok=True)
    shutil.copy(HERE / "models.py", OUT / "models.py")
    log = run(sys.executable, str(HERE / "train.py"), "--out", str(OUT))
    reported = re.findall(r"val accuracy ([\d.]+)", log)[-1]
    (OUT / "val.yaml").write_text((HERE / "val.yaml").read_text().replace("value: 0.0,", f"value: {reported},"))
    engine = ["--precision", "int8,fp16,fp32", "--trt", "--compute-capability", "8.6,8.9"]
    if importlib.util.find_spec("tensorrt_rtx") is None:
        print("tensorrt_rtx has no wheel for this machine: the release is made without an engine")
        engine = engine[:2]
    run("soup", "check", "--val", "demo-out/val.yaml", "-o", "demo-out/soup")
    run("soup", "build", "--val", "demo-out/val.yaml", "-o", "demo-out/soup")
    run("soup", "export", "demo-out/soup", *engine)
    run("soup", "verify", "demo-out/soup/release")
    seconds = time.monotonic() - started
    print(f"\ndone in {seconds:.0f} s: open demo-out/soup/report.html and demo-out/soup/release/report.html")


def run(*command: str) -> str:
    """Show the command and what it prints; give back its standard output."""
    shown = " ".join(["python", *command[1:]] if command[0] == sys.executable else command)
    print(f"\n$ {shown}", flush=True)
    lines = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            lines.append(line)
    if process.returncode:
        sys.exit(process.returncode)
    return "".join(lines)


if __name__ == "__main__":
    main()
