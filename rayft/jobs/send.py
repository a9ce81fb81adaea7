"""`python -m rayft.jobs.send RUN`: prints a run folder, for a machine that sees of the cluster its job server alone.

The job server hands out what a job has printed, and no other files. So the run is printed, as the base64 of a tar file
between two marked lines. This module needs nothing but Python, so that such a job starts at once.
"""

import base64
import hashlib
import os
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from rayft.sweep.snapshot import snapshot

BEGIN, END = "--- begin of the run", "--- end of the run"
SENT = ("sweep.yaml", "environment.json", "rayft.log", "report.html", "best/**/*", "trials/*/events*")
LINE_BYTES = 57 * 1024
"""A multiple of three, so that lines can be decoded one by one."""


def main() -> None:
    """Prints the run."""
    run = Path(sys.argv[1]).expanduser()
    if not (run / "sweep.yaml").is_file():
        print(f"{run} is not a run folder of this node")
        sys.exit(2)
    if link := _link_out_of(run):
        print(f"{link} is a link that leads out of the run folder")
        sys.exit(2)
    with tempfile.TemporaryFile() as file:
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as tar:
            for path in _sent(run):
                tar.add(path, path.relative_to(run), recursive=False)
            if (run / "study.db").exists():
                with tempfile.NamedTemporaryFile() as copy:
                    copy.write(snapshot(run / "study.db"))
                    copy.flush()
                    tar.add(copy.name, "study.db")
        file.seek(0)
        print(f"{BEGIN} {run.name}")
        digest = hashlib.sha256()
        while piece := file.read(LINE_BYTES):
            digest.update(piece)
            print(base64.b64encode(piece).decode())
        print(f"{END} {digest.hexdigest()}")


class Receiver:
    """Takes what `main` printed, piece by piece, and writes the tar file.

    Args:
        write: Takes the tar file's bytes.

    Attributes:
        name: The run's, once its first line was seen.
        is_complete: Whether the last line was seen, and what came before is what was sent.
    """

    def __init__(self, write: Callable[[bytes], object]) -> None:
        self.name: str | None = None
        self.is_complete = False
        self._write = write
        self._rest = b""
        self._digest = hashlib.sha256()

    def take(self, piece: bytes) -> None:
        """The next piece, of any length."""
        *lines, self._rest = (self._rest + piece).split(b"\n")
        for line in lines:
            if line.startswith(BEGIN.encode()):
                self.name = Path(line.decode().removeprefix(BEGIN).strip()).name
            elif line.startswith(END.encode()):
                self.is_complete = line.decode().removeprefix(END).strip() == self._digest.hexdigest()
            elif self.name is not None and not self.is_complete:
                content = base64.b64decode(line)
                self._digest.update(content)
                self._write(content)


def _link_out_of(run: Path) -> Path | None:
    """As `rayft.sweep.run_folder.check_contained`, which needs more than Python."""
    for folder, folders, files in os.walk(run):
        for entry in (Path(folder, name) for name in (*folders, *files)):
            if entry.is_symlink() and not entry.resolve().is_relative_to(run.resolve()):
                return entry
    return None


def _sent(run: Path) -> Iterator[Path]:
    for pattern in SENT:
        yield from (path for path in sorted(run.glob(pattern)) if path.is_file() and not path.is_symlink())


if __name__ == "__main__":
    main()
