"""A sweep's configuration as other folders and processes see it, where files and models have other names."""

import os
from pathlib import Path
from typing import Any

from rayft.config import MODEL, Domain, SweepConfig, as_list


def with_absolute_paths(config: SweepConfig) -> SweepConfig:
    """The same sweep from whichever folder, and in whichever process, it is read."""
    sources = {name: _absolute(getattr(config.data, name)) for name in ("train", "validation", "test", "unlabeled")}
    data = config.data.model_copy(update={name: value for name, value in sources.items() if value is not None})
    # Path.is_dir raises if the name is too long for a file.
    folders = {model: str(Path(model).absolute()) for model in config.models if os.path.isdir(model)}  # noqa: PTH112
    return with_models(config.model_copy(update={"data": data}), folders)


def with_models(config: SweepConfig, renamed: dict[str, str]) -> SweepConfig:
    """The same sweep with other names for some of its models, wherever it names them."""
    models = [renamed.get(model, model) for model in config.models]
    space = {name: _renamed_condition(domain, renamed) for name, domain in config.search_space.items()}
    starts = [
        {name: renamed.get(str(value), value) if name == MODEL else value for name, value in start.items()}
        for start in config.search.start_with
    ]
    changes: dict[str, Any] = {"model": models if isinstance(config.model, list) else models[0]}
    if space != config.search_space:
        changes["search_space"] = space
    if starts != config.search.start_with:
        changes["search"] = config.search.model_copy(update={"start_with": starts})
    return config.model_copy(update=changes)


def _renamed_condition(domain: Domain, renamed: dict[str, str]) -> Domain:
    if MODEL not in domain.when:
        return domain
    wanted = [renamed.get(str(model), model) for model in as_list(domain.when[MODEL])]
    return domain.model_copy(update={"when": {**domain.when, MODEL: wanted}})


def _absolute(source: Any) -> Any:
    if isinstance(source, list):
        return [_absolute(item) for item in source]
    if not isinstance(source, str) or source.startswith("hub:"):
        return source
    return str(Path(source).expanduser().absolute())
