"""The model card of a checkpoint: what it is, how it was trained, how good it is, how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from zk0d.federation.story import Story
from zk0d.learning.statistics import Statistics
from zk0d.release.gate import Verdict

#: As zk0's cards had them: a label, and the run setting that it shows.
HYPERPARAMETERS = {
    "Server Rounds": "num-server-rounds",
    "Local Steps": "local-steps",
    "Proximal μ": "proximal-mu",
    "Initial Learning Rate": "initial-lr",
    "Batch Size": "batch-size",
    "Fraction Fit": "fraction-fit",
    "Eval Frequency": "eval-frequency",
    "Eval Frames": "eval-frames",
    "Checkpoint Interval": "checkpoint-interval",
    "Scheduler Type": "scheduler-type",
    "Dynamic Training Decay": "dynamic-training-decay",
    "Adaptive LR Enabled": "adaptive-lr-enabled",
    "Adaptive μ Enabled": "adaptive-mu-enabled",
    "Aggregation": "aggregation",
    "Server Momentum": "server-momentum",
    "Uplink Codec": "uplink-codec",
    "Seed": "seed",
}
CLASSES = {
    "smolvla": "lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy",
    "act": "lerobot.policies.act.modeling_act import ACTPolicy",
}
BEGIN, END = "<!-- usage -->", "<!-- /usage -->"  #: around the block that a test executes


def model_card(
    story: Story,
    statistics: Statistics,
    verdict: Verdict,
    licenses: Mapping[str, str],
    *,
    simulation: bool,
) -> ModelCard:
    """The card; ``licenses`` are those of the evaluation's datasets, by name."""
    data = ModelCardData(
        language="en",
        license="apache-2.0",
        library_name="lerobot",
        pipeline_tag="robotics",
        base_model=_base(story),
        tags=["federated-learning", "flower", "robotics", "lerobot", _policy(story), "zk0d"],
        model_name=f"zk0d-{story.run}",
        eval_results=_results(story),
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        _title(story, simulation),
        _training(story),
        _nodes(story),
        _evaluation(story, verdict, licenses),
        _insights(story),
        _usage(story),
        _limits(statistics, simulation),
    ]
    return ModelCard("\n\n".join(parts) + "\n")


def _base(story: Story) -> str | None:
    name = str(story.settings["model-name"])
    return name if "/" in name else None


def _policy(story: Story) -> str:
    return str(story.settings["policy"])


def _results(story: Story) -> list[EvalResult] | None:
    if not story.evaluations:
        return None
    return [
        EvalResult(
            task_type="robotics",
            dataset_type=name,
            dataset_name=name,
            metric_type="loss",
            metric_name="policy loss",
            metric_value=loss,
        )
        for name, loss in story.evaluations[-1].losses.items()
        if loss is not None
    ] or None


def _title(story: Story, simulation: bool) -> str:
    kind = "simulated federation on one machine" if simulation else "federation"
    return (
        f"# {_policy(story)}, trained together\n\nTrained by {len(story.nodes)} contributors in a"
        f" {kind} with [zk0d](https://github.com/zk0/zk0d): their recordings stayed at"
        f" home, weight updates travelled. Round {story.round} of run {story.run}."
    )


def _training(story: Story) -> str:
    rows = [
        ("Training Type", "federated"),
        ("Base Model", str(story.settings["model-name"])),
        ("Timestamp", story.began),
        ("Version", ", ".join(f"{name} {v}" for name, v in story.versions.items())),
    ]
    rows += [(label, str(story.settings[key])) for label, key in HYPERPARAMETERS.items()]
    return "## Training Details\n\n" + _table(("", ""), rows)


def _nodes(story: Story) -> str:
    rows = [(part.name, str(part.rounds), str(part.samples)) for part in story.nodes]
    return (
        "## Training Datasets\n\nRecordings of contributors, by the alias that each chose; what"
        " they hold is known to their owners alone.\n\n"
        + _table(("node", "rounds", "samples"), rows)
    )


def _evaluation(story: Story, verdict: Verdict, licenses: Mapping[str, str]) -> str:
    if not story.evaluations:
        return "## Final Evaluation Metrics\n\nThis run was not evaluated."
    first, last = story.evaluations[0], story.evaluations[-1]
    rows = [
        (name, licenses.get(name, "not said"), _number(first.losses.get(name)), _number(loss))
        for name, loss in last.losses.items()
    ]
    rows.append(("**composite**", "", _number(first.loss), _number(last.loss)))
    head = ("dataset", "license", f"policy loss, round {first.round}", f"round {last.round}")
    success = "" if last.success is None else f"\n\nSuccess in simulation: {last.success:.0%}."
    gate = "; ".join(verdict.reasons)
    return (
        f"## Final Evaluation Metrics\n\n{_table(head, rows)}{success}\n\nQuality gate:"
        f" {'passed' if verdict.passed else 'not passed'} ({gate})."
    )


def _insights(story: Story) -> str:
    lines = []
    measured = [point for point in story.evaluations if point.loss is not None]
    if len(measured) > 1:
        lines.append(
            f"Convergence: policy loss {_number(measured[0].loss)} → {_number(measured[-1].loss)},"
            f" best {_number(min(p.loss for p in measured if p.loss is not None))}."
        )
    if story.rounds:
        first, last = story.rounds[0], story.rounds[-1]
        mean = sum(point.update_norm for point in story.rounds) / len(story.rounds)
        full = max(point.nodes for point in story.rounds)
        taken = sum(point.nodes for point in story.rounds) / (full * len(story.rounds))
        short = [str(point.round) for point in story.rounds if point.nodes < full]
        lines += [
            f"Clients' loss: {first.train_loss:.4f} → {last.train_loss:.4f}.",
            f"Norm of the mean update: {mean:.4f} on average.",
            f"Learning rate {first.learning_rate:.2e} → {last.learning_rate:.2e}, proximal μ"
            f" {first.proximal_mu:g} → {last.proximal_mu:g}.",
            f"Participation: {taken:.0%} of the largest round's {full} nodes.",
        ]
        if short:
            lines.append(f"Rounds with fewer nodes: {', '.join(short[:20])}.")
    refused = ", ".join(f"{count} {reason}" for reason, count in sorted(story.refused.items()))
    lines.append(f"Refused updates: {refused or 'none'}. Lost answers: {story.lost}.")
    lines += [f"Schedule, {note}." for note in story.notes[-20:]]
    return "## Training Insights\n\n" + "\n".join(f"- {line}" for line in lines)


def _usage(story: Story) -> str:
    imported = CLASSES[_policy(story)]
    name = imported.rpartition(" ")[2]
    code = (
        f"from {imported}\nfrom lerobot.policies import make_pre_post_processors\n\n"
        'folder = "."  # this repository\'s name on the hub, or its folder\n'
        f"policy = {name}.from_pretrained(folder)\npolicy.eval()\n"
        "preprocess, postprocess = make_pre_post_processors(\n"
        "    policy.config, pretrained_path=folder\n)\n"
        "# action = postprocess(policy.select_action(preprocess(observation)))\n"
    )
    return f"## Usage\n\n{BEGIN}\n```python\n{code}```\n{END}"


def _limits(statistics: Statistics, simulation: bool) -> str:
    lines = [
        "States and actions are normalized with statistics merged from"
        f" {statistics.nodes} contributors, which are in the processors' files here. With"
        " those of another dataset the policy fails.",
        "The policy loss says how well held-out demonstrations are predicted, not how often a robot"
        " succeeds.",
    ]
    if simulation:
        lines.insert(0, "Trained in simulation: no robot's recordings were used.")
    return "## Limitations\n\n" + "\n".join(f"- {line}" for line in lines)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
