"""`python -m rayft.jobs.run ARGUMENT...`: becomes `rayft ARGUMENT...` in a copy of the job's folder, and of rayft.

Ray unpacks what a job was sent with on each node, and where two nodes are on one machine the second one replaces what
the first has unpacked, under the feet of the programs there. The copy also outlives the cluster, for a job that is
resumed.
"""

import hashlib
import os
import shutil
import sys
from pathlib import Path

import rayft
from rayft.cache_folder import cache_folder


def main() -> None:
    """Copies and goes on there."""
    sent = Path.cwd()
    package = Path(rayft.__file__).parent
    # Ray has named the folder by its contents. A mended rayft makes another copy: workers never run the old one.
    folder = cache_folder("jobs") / f"{sent.name}-{_digest(package)}"
    if not folder.is_dir():
        partial = folder.with_name(f".{folder.name}.{os.getpid()}")
        shutil.copytree(sent, partial)
        shutil.copytree(package, partial / "rayft", dirs_exist_ok=True)
        partial.replace(folder)
    os.chdir(folder)
    os.execv(sys.executable, [sys.executable, "-m", "rayft.cli", *sys.argv[1:]])


def _digest(package: Path) -> str:
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        content = hashlib.sha256(file.read_bytes()).hexdigest()
        digest.update(f"{file.relative_to(package)} {content}\n".encode())
    return digest.hexdigest()[:16]


if __name__ == "__main__":
    main()
