"""The README.md of an exported model: what it is, how it scores, how to load it and how to make it again."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from rayft.config import SweepConfig, TaskName
from rayft.search_space import resolve, values_read

_HUB_METRICS = {"macro_f1": "f1", "micro_f1": "f1", "weighted_f1": "f1", "top5_accuracy": "accuracy"}
_HUB_METRICS |= {"token_accuracy": "accuracy", "pearson": "pearsonr", "spearman": "spearmanr"}
"""The Hub's name for each metric that it calls otherwise."""

_MAX_CLASSES = 20
"""Of more classes the card has no confusion matrix, which nobody could read."""

_EXAMPLES: dict[TaskName, str] = {
    "text-classification": 'classify = pipeline("text-classification", model="path/to/this/folder")\n'
    "print(classify({text}, truncation=True))",
    "multi-label-classification": 'classify = pipeline("text-classification", model="path/to/this/folder")\n'
    "print([label for label in classify({text}, top_k=None, truncation=True) if label['score'] > 0.5])",
    "regression": 'score = pipeline("text-classification", model="path/to/this/folder")\n'
    'print(score({text}, function_to_apply="none", truncation=True)[0]["score"])',
    "token-classification": 'tag = pipeline("token-classification", model="path/to/this/folder", '
    'aggregation_strategy="first")\nprint(tag("some text"))',
    "causal-lm": 'generate = pipeline("text-generation", model="path/to/this/folder")\n'
    'print(generate("some text", max_new_tokens=40))',
    "image-classification": 'classify = pipeline("image-classification", model="path/to/this/folder")\n'
    'print(classify("image.png"))',
}

_PIPELINES: dict[TaskName, str] = {
    "multi-label-classification": "text-classification",
    "regression": "text-classification",
    "causal-lm": "text-generation",
}
"""The Hub's name for each task that it calls otherwise."""

_TEMPLATE = """\
---
{front_matter}
---

# {base} fine-tuned for {task}

`{model}`, fine-tuned with strategy `{strategy}` on {rows} rows{labels_count}. It is epoch {epoch} of trial {trial} in a
hyperparameter search by {metric} on the validation split{again}.

A clean process loaded this folder with plain `transformers` and scored validation again from the raw rows: every metric
was within {tolerance} of what the search had recorded, but for rows that rounding decides.

## Results

{results}

{interval}
{front}{final}{classes}
## Use

```python
from transformers import pipeline

{example}
```

## Data

{data}

{facts}

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
    read = values_read(config, resolve(config, best["params"]))
    splits = [name for name in ("validation", "test") if best[name] is not None]
    paired = isinstance(config.data.columns.text, tuple)
    return _TEMPLATE.format(
        front_matter=_front_matter(config, best),
        base=Path(best["model"]).name,
        task=config.task,
        model=best["model"],
        strategy=strategy,
        rows=best["rows"]["train"],
        labels_count=f" with {len(best['labels'])} labels" if best["labels"] else "",
        epoch=best["epoch"],
        trial=best["trial"],
        again=_again(best),
        metric=best["metric"],
        tolerance=best["verification"]["tolerance"],
        results=_table(
            ["metric", *splits], [[name, *(f"{best[s][name]:.4f}" for s in splits)] for name in best["validation"]]
        ),
        interval=_interval(best),
        front=_front(best),
        final=_final(best),
        classes=_class_tables(best, splits[-1]),
        example=_EXAMPLES[config.task].format(
            text='{"text": "a first text", "text_pair": "a second text"}' if paired else '"some text"'
        ),
        data=_table(["split", "rows", "source"], _data_rows(config, best["rows"])),
        facts=_facts(best),
        hyperparameters=_table(
            ["name", "value", ""],
            [[n, best["hyperparameters"][n], "searched" if n in best["params"] else "fixed"] for n in read],
        ),
        seed=config.search.seed,
        versions=", ".join(f"{name} {version}" for name, version in best["versions"].items()),
    )


def _again(best: Mapping[str, Any]) -> str:
    return "" if best["final"] is None else f", in which it is trial {best['final']['trial']} again with another seed"


def _class_tables(best: Mapping[str, Any], split: str) -> str:
    """Each class's own figures on a split, and who is taken for whom."""
    classes = best["classes"].get(split, {})
    if not classes:
        return ""
    names = ("precision", "recall", "f1")
    rows = [[f"`{c}`", own["rows"], *(f"{own[name]:.4f}" for name in names)] for c, own in classes.items()]
    text = f"\nBy class, on {split}:\n\n{_table(['class', 'rows', *names], rows)}\n"
    if all("predicted" in own for own in classes.values()) and len(classes) <= _MAX_CLASSES:
        counts = [[f"`{name}`", *own["predicted"]] for name, own in classes.items()]
        titles = ["true \\ predicted", *(f"`{name}`" for name in classes)]
        text += f"\nConfusion matrix, on {split}:\n\n{_table(titles, counts)}\n"
    return text


def _interval(best: Mapping[str, Any]) -> str:
    low, high = best["interval"]["95%"]
    about = f"{best['metric']} on {best['interval']['split']}"
    return f"95 % interval of {about}: {low:.4f} to {high:.4f} (bootstrap over rows)."


def _front(best: Mapping[str, Any]) -> str:
    """The trials among which this one was chosen, if the search was for more than one thing."""
    if best["front"] is None:
        return ""
    names = [*best["objectives"]]
    rows = [[one["trial"], *(f"{one['objectives'][name]:.4f}" for name in names)] for one in best["front"]]
    timed = "" if best["latency_ms"] is None else f"This model takes {best['latency_ms']:.2f} ms for one row."
    text = f"The search was for {' and '.join(names)}. No trial beats one of these in all:"
    return f"\n{text}\n\n{_table(['trial', *names], rows)}\n\n{timed}\n"


def _final(best: Mapping[str, Any]) -> str:
    """What the last stage found, in words."""
    if best["final"] is None:
        text = "It was not trained again with other seeds, so its validation score is that of the luckiest of many."
        return f"\n{text}\n"
    return "\n" + "\n".join(f"- {sentence[0].upper()}{sentence[1:]}." for sentence in best["final"]["words"]) + "\n"


def _facts(best: Mapping[str, Any]) -> str:
    cut = [] if best["max_length"] is None else [f"Rows are cut to {best['max_length']} tokens."]
    labels = [f"Labels: {', '.join(f'`{name}`' for name in best['labels'])}."] if best["labels"] else []
    return " ".join([*cut, *labels])


def _front_matter(config: SweepConfig, best: Mapping[str, Any]) -> str:
    # Test where there is one: validation has chosen the model, so it scores it too well.
    split = "validation" if best["test"] is None else "test"
    source = _source(config.data.train)
    dataset = source.removeprefix("hub:").partition(":")[0] if source.startswith("hub:") else None
    results = [
        EvalResult(
            task_type=_PIPELINES.get(config.task, config.task),
            dataset_type=dataset or "files",
            dataset_name=dataset or source,
            dataset_split=split,
            metric_type=_HUB_METRICS.get(metric, metric),
            metric_value=best[split][metric],
            metric_name=metric,
        )
        for metric in best["validation"]
    ]
    return ModelCardData(
        base_model=None if Path(best["model"]).exists() else best["model"],  # the Hub knows ids, no folders
        datasets=dataset,
        eval_results=results,
        library_name="transformers",
        metrics=sorted({_HUB_METRICS.get(metric, metric) for metric in best["validation"]} - {"loss"}),
        model_name=Path(best["model"]).name,
        pipeline_tag=_PIPELINES.get(config.task, config.task),
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
