"""The model card of a checkpoint: what it is, how it was trained, how good it is, how to use it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from zk0d.config.families import family_of, packaged
from zk0d.config.names import GROUPS_FOLDER
from zk0d.learning.statistics import RunStatistics
from zk0d.record.held_out import change_of
from zk0d.record.summary import RunSummary
from zk0d.release.chart import CHART
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
FORMAT = (
    "## Model Format\n\nLeRobot's own layout: `config.json`, `model.safetensors`, and the"
    " processors' `policy_preprocessor.json` and `policy_postprocessor.json` with their statistics."
    " No pickle. `metrics.json` has every figure of this card, `provenance.json` its origin."
)
USAGE = """\
from {module} import {name}
from lerobot.policies import make_pre_post_processors

folder = "."  # this repository's name on the hub, or its folder
policy = {name}.from_pretrained(folder)
policy.eval()
preprocess, postprocess = make_pre_post_processors(policy.config, pretrained_path=folder)
# action = postprocess(policy.select_action(preprocess(observation)))
"""
#: Of a policy of another package, which registers itself when it is imported.
PACKAGED_USAGE = """\
import {package}
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

folder = "."  # this repository's name on the hub, or its folder
policy = get_policy_class("{kind}").from_pretrained(folder)
policy.eval()
preprocess, postprocess = make_pre_post_processors(policy.config, pretrained_path=folder)
# action = postprocess(policy.select_action(preprocess(observation)))
"""
#: LeRobot looks for it below the current folder: from elsewhere it is told where it is.
CARRIED = """\
from lerobot.configs import PreTrainedConfig
from lerobot.policies import make_pre_post_processors
from {module} import {name}

folder = "."  # this repository's folder: hf download USER/NAME --local-dir FOLDER
config = PreTrainedConfig.from_pretrained(folder)
{carried}
policy = {name}.from_pretrained(folder, config=config)
policy.eval()
preprocess, postprocess = make_pre_post_processors(
    config,
    pretrained_path=folder,
    preprocessor_overrides={{"tokenizer_processor": {{"tokenizer_name": config.{key}}}}},
)
# action = postprocess(policy.select_action(preprocess(observation)))
"""
#: What a group of statistics is called, by how a run normalizes.
_KINDS = {"robot-type": "robot type", "node": "contributor"}
BEGIN, END = "<!-- usage -->", "<!-- /usage -->"  #: around the block that a test executes


def model_card(
    summary: RunSummary,
    statistics: RunStatistics,
    verdict: Verdict,
    licenses: Mapping[str, str],
    *,
    simulation: bool,
    datasets: Sequence[str] = (),
    carries_vlm: bool = False,
) -> ModelCard:
    """The card.

    Parameters
    ----------
    licenses
        Of the evaluation's datasets, by name.
    datasets
        Those of them that are on the hub, as user/name.
    carries_vlm
        Whether the checkpoint holds its vision-language model's settings and tokenizer.
    """
    data = ModelCardData(
        language="en",
        license="apache-2.0",
        library_name="lerobot",
        pipeline_tag="robotics",
        base_model=_base(summary),
        datasets=list(datasets) or None,
        metrics=["policy_loss"] if summary.evaluations else None,
        tags=["federated-learning", "flower", "robotics", "lerobot", _kind(summary), "zk0d"],
        model_name=f"zk0d-{summary.run}",
        eval_results=_results(summary),
    )
    parts = [
        f"---\n{data.to_yaml()}\n---",
        _title(summary, simulation),
        _training(summary),
        _hyperparameters(summary),
        _nodes(summary),
        _evaluated_on(summary, licenses),
        _final(summary, verdict),
        _by_dataset(summary, statistics),
        *_on_nodes(summary),
        _insights(summary),
        _usage(summary, statistics, carries_vlm),
        FORMAT + _adapter(summary),
        _limits(statistics, simulation),
        _citation(summary),
    ]
    return ModelCard("\n\n".join(parts) + "\n")


def _base(summary: RunSummary) -> str | None:
    name = str(summary.settings["model-name"])
    return name if "/" in name else None


def _policy(summary: RunSummary) -> str:
    return str(summary.settings["policy"])


def _kind(summary: RunSummary) -> str:
    """LeRobot's name of the policy."""
    _, kind = packaged(_policy(summary)) or ("", _policy(summary))
    return kind


def _results(summary: RunSummary) -> list[EvalResult] | None:
    if not summary.evaluations:
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
        for name, loss in summary.evaluations[-1].losses.items()
        if loss is not None
    ] or None


def _title(summary: RunSummary, simulation: bool) -> str:
    kind = "simulated federation on one machine" if simulation else "federation"
    return (
        f"# {_policy(summary)}, trained together\n\nTrained by {len(summary.nodes)} contributors in"
        f" a {kind} with [zk0d](https://github.com/zk0/zk0d): their recordings stayed at"
        f" home, weight updates travelled. Round {summary.round} of run {summary.run}."
    )


def _training(summary: RunSummary) -> str:
    rows = [
        ("Training Type", "federated"),
        ("Base Model", str(summary.settings["model-name"])),
        *([("Started From", f"release {summary.start_from}")] if summary.start_from else []),
        ("Timestamp", summary.began),
        ("Version", ", ".join(f"{name} {v}" for name, v in summary.versions.items())),
    ]
    return "## Training Details\n\n" + _table(("", ""), rows)


def _hyperparameters(summary: RunSummary) -> str:
    rows = [(label, str(summary.settings[key])) for label, key in HYPERPARAMETERS.items()]
    return "## Hyperparameters\n\n" + _table(("", ""), rows)


def _nodes(summary: RunSummary) -> str:
    rows = [(part.name, str(part.rounds), str(part.samples)) for part in summary.nodes]
    return (
        "## Training Datasets\n\nRecordings of contributors, by the alias that each chose; what"
        " they hold is known to their owners alone.\n\n"
        + _table(("node", "rounds", "samples"), rows)
    )


def _evaluated_on(summary: RunSummary, licenses: Mapping[str, str]) -> str:
    if not summary.evaluations:
        return "## Evaluation Datasets\n\nNone."
    rows = [(name, licenses.get(name, "not said")) for name in summary.evaluations[-1].losses]
    text = "## Evaluation Datasets\n\nNo contributor trained on them.\n\n"
    return text + _table(("dataset", "license"), rows)


def _final(summary: RunSummary, verdict: Verdict) -> str:
    title = "## Final Evaluation Metrics\n\n"
    gate = f"Quality gate: {'passed' if verdict.passed else 'not passed'}"
    gate += f" ({'; '.join(verdict.reasons)})."
    if not summary.has_evaluations:
        if verdict.judged_by == "nodes":
            return f"{title}The coordinator has no recordings of its own.\n\n{gate}"
        return title + "This run was not evaluated."
    first, last = summary.evaluations[0], summary.evaluations[-1]
    rows = [("Composite Eval Loss", _number(first.loss), _number(last.loss))]
    if summary.rounds:
        before, after = summary.rounds[0], summary.rounds[-1]
        rows.append(("Clients' Loss", f"{before.train_loss:.4f}", f"{after.train_loss:.4f}"))
        rows.append(("Clients", str(before.nodes), str(after.nodes)))
    table = _table(("", f"round {first.round}", f"round {last.round}"), rows)
    success = "" if last.success is None else f"\n\nSuccess in simulation: {last.success:.0%}."
    return (
        f"{title}{table}{success}\n\n{gate}\n\n![Policy loss and training loss by round]({CHART})"
    )


def _by_dataset(summary: RunSummary, statistics: RunStatistics) -> str:
    if not summary.evaluations:
        return "## Per-Dataset Results\n\nNone."
    first, last = summary.evaluations[0], summary.evaluations[-1]
    rows: list[tuple[str, ...]] = [
        (
            name,
            _number(first.losses.get(name)),
            _number(loss),
            _number(last.spreads.get(name)),
        )
        for name, loss in last.losses.items()
    ]
    head: tuple[str, ...]
    head = ("dataset", f"policy loss, round {first.round}", f"round {last.round}", "spread")
    if statistics.groups:
        head = (*head, "normalized with the statistics of")
        rows = [(*row, last.statistics.get(row[0]) or "all") for row in rows]
    return "## Per-Dataset Results\n\n" + _table(head, rows)


def _on_nodes(summary: RunSummary) -> list[str]:
    """What contributors found on the episodes that they keep out of training."""
    found = change_of(summary)
    if found is None:
        return []
    rows: list[tuple[str, ...]] = [
        (
            each.node,
            str(each.episodes),
            _number(each.before),
            _number(each.after),
            _signed(each.change),
            _number(each.spread),
        )
        for each in found.nodes
    ]
    if len(found.nodes) > 1:
        episodes = sum(each.episodes for each in found.nodes)
        together = (found.before, found.after)
        rows.append(
            (
                "together",
                str(episodes),
                *map(_number, together),
                _signed(found.mean),
                _number(found.spread),
            )
        )
    head = (
        "node",
        "episodes",
        "policy loss, round 0",
        f"round {summary.round}",
        "change",
        "spread",
    )
    text = (
        "## On the Contributors' Own Episodes\n\nEach kept some episodes out of training and"
        " compares the policy on them with itself: the same frames, the same noise. Together they"
        " count by their frames.\n\n"
    )
    missing = ", ".join(f"{name} ({why})" for name, why in summary.not_measured.items())
    return [text + _table(head, rows) + (f"\n\nNot measured: {missing}." if missing else "")]


def _insights(summary: RunSummary) -> str:
    lines = []
    measured = [point for point in summary.evaluations if point.loss is not None]
    if len(measured) > 1:
        lines.append(
            f"Convergence: policy loss {_number(measured[0].loss)} → {_number(measured[-1].loss)},"
            f" best {_number(min(p.loss for p in measured if p.loss is not None))}."
        )
    if summary.rounds:
        first, last = summary.rounds[0], summary.rounds[-1]
        mean = sum(point.update_norm for point in summary.rounds) / len(summary.rounds)
        full = max(point.nodes for point in summary.rounds)
        taken = sum(point.nodes for point in summary.rounds) / (full * len(summary.rounds))
        short = [str(point.round) for point in summary.rounds if point.nodes < full]
        lines += [
            f"Clients' loss: {first.train_loss:.4f} → {last.train_loss:.4f}.",
            f"Norm of the mean update: {mean:.4f} on average.",
            f"Learning rate {first.learning_rate:.2e} → {last.learning_rate:.2e}, proximal μ"
            f" {first.proximal_mu:g} → {last.proximal_mu:g}.",
            f"Participation: {taken:.0%} of the largest round's {full} nodes.",
        ]
        if short:
            lines.append(f"Rounds with fewer nodes: {', '.join(short[:20])}.")
    refused = ", ".join(f"{count} {reason}" for reason, count in sorted(summary.refused.items()))
    lines.append(f"Refused updates: {refused or 'none'}. Lost answers: {summary.lost}.")
    lines += [f"Schedule, {note}." for note in summary.notes[-20:]]
    return "## Training Insights\n\n" + "\n".join(f"- {line}" for line in lines)


def usage(policy: str, carries_vlm: bool) -> str:
    """How LeRobot loads a checkpoint of that family."""
    if other := packaged(policy):
        code = PACKAGED_USAGE.format(package=other[0], kind=other[1])
        return f"## Usage\n\n{BEGIN}\n```python\n{code}```\n{END}"
    family = family_of(policy)
    module, _, name = family.policy_class.rpartition(".")
    keys = family.companion.keys if family.companion else ("",)
    carried = "\n".join(
        f'config.{key} = f"{{folder}}/{{config.{key}}}"  # is in this folder, too' for key in keys
    )
    code = (CARRIED if carries_vlm else USAGE).format(
        module=module, name=name, carried=carried, key=keys[-1]
    )
    return f"## Usage\n\n{BEGIN}\n```python\n{code}```\n{END}"


def _usage(summary: RunSummary, statistics: RunStatistics, carries_vlm: bool) -> str:
    text = usage(_policy(summary), carries_vlm)
    return f"{text}\n\n{_groups(statistics)}" if statistics.groups else text


def _groups(statistics: RunStatistics) -> str:
    """How an arm gets the processors of its group."""
    names = sorted(statistics.groups)
    rows = [(name, f"`{GROUPS_FOLDER}/{name}`") for name in names]
    return (
        f"Each {_KINDS[statistics.by]} has its own processors. Copy those of yours over the ones in"
        f" this folder, as in `cp {GROUPS_FOLDER}/{names[0]}/* .`, before you load it.\n\n"
        + _table((_KINDS[statistics.by], "processors"), rows)
    )


def _limits(statistics: RunStatistics, simulation: bool) -> str:
    merged = (
        "States and actions are normalized with statistics merged from"
        f" {statistics.nodes} contributors, which are in the processors' files here. With"
        " those of another dataset the policy fails."
    )
    if statistics.groups:
        merged = (
            f"States and actions are normalized with the statistics of each {_KINDS[statistics.by]}"
            " (see Usage). On an arm that is none of these the policy was not trained; the"
            f" processors here have the statistics of all {statistics.nodes} contributors, which"
            " no arm was trained with."
        )
    lines = [
        merged,
        "The policy loss says how well held-out demonstrations are predicted, not how often a robot"
        " succeeds.",
    ]
    if simulation:
        lines.insert(0, "Trained in simulation: no robot's recordings were used.")
    return "## Limitations\n\n" + "\n".join(f"- {line}" for line in lines)


def _adapter(summary: RunSummary) -> str:
    kind = summary.settings.get("adapter", "none")  # runs of before have none
    if kind == "none":
        return ""
    return (
        f" What trained is an adapter ({kind}, rank {summary.settings['adapter-rank']}), which is"
        " merged into these weights; the folder `adapter` holds it alone, for PEFT."
    )


def _citation(summary: RunSummary) -> str:
    return (
        "## Citation\n\n```bibtex\n"
        f"@misc{{zk0d_{summary.run.replace('-', '_')},\n"
        f"  title = {{{_policy(summary)}, trained together by {len(summary.nodes)}"
        " contributors}},\n"
        f"  year = {{{summary.began[:4]}}},\n"
        f"  note = {{zk0d {summary.versions.get('zk0d', '')}, run {summary.run},"
        f" round {summary.round}}}\n}}\n```"
    )


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _signed(value: float) -> str:
    return f"{value:+.4f}"


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.4f}"
