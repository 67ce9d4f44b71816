"""Make .venv and install the locked requirements into it, showing what happens. Uses the standard library only.

    python3 scripts/install.py cpu

Nothing is done when the lock file is the one installed last time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "baton-installed"
TERMINAL = sys.stdout.isatty()


def say(text: str) -> None:
    """Print a line, over the progress line if there is one."""
    print(f"\r\033[K{text}" if TERMINAL else text, flush=True)


def run_pip(what: str, arguments: list[str]) -> None:
    """Run pip, showing a counter; its whole output goes to a log and is shown when it fails."""
    log_path = VENV / "install.log"
    began_s = shown_s = time.monotonic()
    seen = 0
    tail: list[str] = []
    command = [str(VENV / "bin" / "python"), "-m", "pip", "install", "--disable-pip-version-check", *arguments]
    with log_path.open("a") as log_file:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        assert process.stdout is not None
        for line in process.stdout:
            log_file.write(line)
            tail = [*tail, line.rstrip()][-8:]
            words = line.split()
            if words and words[0] in ("Collecting", "Processing", "Requirement"):
                seen += 1
            now = time.monotonic()
            doing = " ".join(words[:2]) if words else ""
            if TERMINAL and now - shown_s > 0.2:
                print(f"\r\033[K  {what}: {seen} packages, {now - began_s:.0f} s   {doing[:60]}", end="", flush=True)
                shown_s = now
            elif not TERMINAL and now - shown_s > 15:
                print(f"  {what}: {seen} packages, {now - began_s:.0f} s   {doing[:60]}", flush=True)
                shown_s = now
    if process.wait() != 0:
        say(f"  {what}: failed; the last lines of {log_path} are:")
        print("\n".join(f"    {line}" for line in tail if not line.startswith("WARNING")))
        if any("torch" in line for line in tail):
            print("  torch's CPU build is in PyTorch's own index: set PIP_EXTRA_INDEX_URL to it and retry.")
        sys.exit(1)
    say(f"  {what}: done in {time.monotonic() - began_s:.0f} s")


def main() -> None:
    """Install one variant, ``cpu`` by default."""
    variant = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    lock = ROOT / "requirements" / f"{variant}.txt"
    digest = hashlib.sha256(lock.read_bytes() + (ROOT / "pyproject.toml").read_bytes()).hexdigest()
    if STAMP.is_file() and STAMP.read_text() == f"{digest} {ROOT}":
        return
    if not (3, 11) <= sys.version_info[:2] < (3, 13):
        sys.exit(f"Baton needs Python 3.11 or 3.12; this is {sys.version.split()[0]}. Set PYTHON=python3.11 and retry.")
    if shutil.disk_usage(ROOT).free < 8 << 30:
        sys.exit("less than 8 GiB of disk are free; the install takes about 5 GiB")
    print(f"Installing Baton ({variant}) into .venv; some minutes the first time.", flush=True)
    if not (VENV / "bin" / "python").exists():
        venv.create(VENV, with_pip=True)
    # The lock is complete, so nothing is resolved: NIXL's and torch's own wishes would bring gigabytes of CUDA.
    run_pip("locked packages", ["--no-deps", "-r", str(lock)])
    run_pip("baton", ["--no-deps", "--no-build-isolation", "-e", str(ROOT)])
    STAMP.write_text(f"{digest} {ROOT}")


if __name__ == "__main__":
    os.environ.setdefault("PIP_DEFAULT_TIMEOUT", "180")
    main()
