"""Finding an exported model, and loading it as anybody would."""

import difflib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rayft.errors import Fault, ModelError
from rayft.export.record import RECORD

if TYPE_CHECKING:
    from rayft.tasks.base import Task

_BEST = "best"


def find_model(name: str) -> Path:
    """The model folder that the user means: the one named, or `best` in the run folder named.

    Raises:
        ModelError: There is none.
    """
    path = Path(name).expanduser()
    for folder in (path, path / _BEST):
        if (folder / RECORD).is_file():
            return folder
    raise ModelError([Fault(name, _why_none(name, path))])


def _why_none(name: str, path: Path) -> str:
    if "://" in name:
        return f"must be on this machine, but is an address; `rayft export {name} --to FOLDER` brings a model here"
    if path.is_file():
        return "must be an exported model's folder or a run folder, but is a file"
    if path.is_dir():
        if (path / "sweep.yaml").is_file():
            return f"this run has no model yet, as {_BEST}/{RECORD} is missing; `rayft resume {name}` goes on with it"
        return f"must be an exported model's folder or a run folder, but has no {RECORD} and no {_BEST}/{RECORD}"
    if not path.parent.is_dir():
        return f"there is no folder {path.parent}, seen from {Path.cwd()}"
    folders = [one.name for one in path.parent.iterdir() if one.is_dir()]
    near = difflib.get_close_matches(path.name, folders, n=1)
    hint = f"; did you mean {path.parent / near[0]}?" if near else f", seen from {Path.cwd()}"
    return f"there is no such folder{hint}"


def load_pipeline(folder: Path, task: "Task") -> Any:
    """The task's pipeline of transformers with the model in a folder, on the GPU if there is one.

    Raises:
        ModelError: The folder doesn't hold a whole model for the task.
    """
    import torch
    import transformers

    from rayft.models.load import LOAD_ERRORS, load_preprocessor

    preprocessor = load_preprocessor(str(folder), task)
    try:
        model, loaded = getattr(transformers, task.auto_class).from_pretrained(
            folder, dtype=torch.float32, use_safetensors=True, trust_remote_code=False, output_loading_info=True
        )
    except LOAD_ERRORS as error:
        cause = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ModelError([Fault(str(folder), f"its model can't be read: {cause}")]) from error
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if loaded[kind]:  # transformers only warns, and draws missing weights at random
            rule = f"its weights must be those that its config.json asks for, but {len(loaded[kind])} are"
            raise ModelError([Fault(str(folder), f"{rule} {kind.removesuffix('_keys')}: {sorted(loaded[kind])[0]}")])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    part = "tokenizer" if task.preprocessor == "tokenizer" else "image_processor"
    return transformers.pipeline(task.pipeline, model=model.eval(), device=device, **{part: preprocessor})
