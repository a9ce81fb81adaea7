"""The README.md of an exported model: what it is, how it scores, how to load it and how to make it again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from rayft.config import SOME_STRATEGIES_ONLY, STRATEGY_HYPERPARAMETERS, SweepConfig

_HUB_METRICS = {
    "loss": "loss",
    "accuracy": "accuracy",
    "macro_f1": "f1",
    "weighted_f1": "f1",
    "matthews_correlation": "matthews_correlation",
}
"""The Hub's name for each metric."""

_TEMPLATE = """\
---
{front_matter}
---

# {base} fine-tuned for {task}

`{model}`, fine-tuned with strategy `{strategy}` on {rows} rows with {n_labels} labels. It is epoch {epoch} of
trial {trial} in a hyperparameter search by {metric} on the validation split.

A clean process loaded this folder with plain `transformers` and scored validation again from raw text: every metric was
within {tolerance} of what the search had recorded.

## Results

{results}

## Use

```python
from transformers import pipeline

classify = pipeline("text-classification", model="path/to/this/folder")
print(classify({example}, truncation=True))
```

## Data

{data}

Rows are cut to {max_length} tokens. Labels: {labels}.

## Hyperparameters

{hyperparameters}

## Reproduce

`rayft sweep sweep.yaml` with the `sweep.yaml` of the run folder (seed {seed}), in an environment with
{versions}. `rayft.json` holds all of the above as JSON.
"""


def model_card(config: SweepConfig, best: Mapping[str, Any]) -> str:
    """The card as Markdown with the Hugging Face Hub's front matter.

    Args:
        config: The sweep.
        best: The content of the folder's `rayft.json`.
    """
    strategy = best["hyperparameters"]["strategy"]
    unread = SOME_STRATEGIES_ONLY - STRATEGY_HYPERPARAMETERS[strategy]
    read = [name for name in best["hyperparameters"] if name not in unread]
    splits = [name for name in ("validation", "test") if best[name] is not None]
    paired = isinstance(config.data.columns.text, tuple)
    return _TEMPLATE.format(
        front_matter=_front_matter(config, best),
        base=Path(config.model).name,
        task=config.task,
        model=config.model,
        strategy=strategy,
        rows=best["rows"]["train"],
        n_labels=len(best["labels"]),
        epoch=best["epoch"],
        trial=best["trial"],
        metric=best["metric"],
        tolerance=best["verification"]["tolerance"],
        results=_table(
            ["metric", *splits], [[name, *(f"{best[s][name]:.4f}" for s in splits)] for name in _HUB_METRICS]
        ),
        example='{"text": "a first text", "text_pair": "a second text"}' if paired else '"some text"',
        data=_table(["split", "rows", "source"], _data_rows(config, best["rows"])),
        max_length=best["max_length"],
        labels=", ".join(f"`{name}`" for name in best["labels"]),
        hyperparameters=_table(
            ["name", "value", ""],
            [[n, best["hyperparameters"][n], "searched" if n in best["params"] else "fixed"] for n in read],
        ),
        seed=config.search.seed,
        versions=", ".join(f"{name} {version}" for name, version in best["versions"].items()),
    )


def _front_matter(config: SweepConfig, best: Mapping[str, Any]) -> str:
    # Test where there is one: validation has chosen the model, so it scores it too well.
    split = "validation" if best["test"] is None else "test"
    source = _source(config.data.train)
    dataset = source.removeprefix("hub:").partition(":")[0] if source.startswith("hub:") else None
    results = [
        EvalResult(
            task_type=config.task,
            dataset_type=dataset or "files",
            dataset_name=dataset or source,
            dataset_split=split,
            metric_type=hub_name,
            metric_value=best[split][metric],
            metric_name=metric,
        )
        for metric, hub_name in _HUB_METRICS.items()
    ]
    return ModelCardData(
        base_model=None if Path(config.model).exists() else config.model,  # the Hub knows ids, no folders
        datasets=dataset,
        eval_results=results,
        library_name="transformers",
        metrics=sorted(set(_HUB_METRICS.values()) - {"loss"}),
        model_name=Path(config.model).name,
        pipeline_tag=config.task,
        tags=["rayft", config.task],
    ).to_yaml()


def _data_rows(config: SweepConfig, rows: Mapping[str, int]) -> list[list[Any]]:
    sources = {name: getattr(config.data, name) for name in rows}
    held_out = {name: f"{source:g} of train" for name, source in sources.items() if isinstance(source, float)}
    return [[name, rows[name], held_out.get(name) or f"`{_source(sources[name])}`"] for name in rows]


def _source(source: str | list[str]) -> str:
    return source if isinstance(source, str) else ", ".join(source)


def _table(titles: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join("null" if cell is None else str(cell) for cell in line) + " |" for line in lines)
