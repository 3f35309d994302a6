"""SoReach from images alone, federated, with a SmolVLA that trains whole: success by round.

The state does not tell where the block is. Half of the contributors have the one half of the table,
half the other (or a quarter each, or all of them the whole of it); real processes, closed-loop
success every few rounds.

    python -m tests.bench.gpu.learning --folder LAB --record    # needs no GPU
    python -m tests.bench.gpu.learning --folder LAB
    python -m tests.bench.gpu.learning --folder OTHER --deal LAB --split whole
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ProcessPoolExecutor
from functools import cached_property
from multiprocessing import get_context
from pathlib import Path

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from transformers import (
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

from tests.bench.lab import _finish
from tests.record.lines import read_lines
from zk0d.config.run import RunSettings
from zk0d.demo import federation as demo
from zk0d.demo.layout import LETTERS, Contributor, Layout
from zk0d.demo.recordings import make_recordings
from zk0d.learning.merge import merge_datasets
from zk0d.learning.policies.tiny_vlm import tokenizer as made_tokenizer
from zk0d.simulators.task import Sector

IMAGE, PATCH, SHRINK = 96, 8, 2
HIDDEN, LAYERS, HEADS = 256, 4, 8


class _Parts(Layout):
    """Neighbours have different parts of the table."""

    parts = 2

    @cached_property
    def contributors(self) -> list[Contributor]:
        return [
            Contributor(LETTERS[i], Sector(i % self.parts, self.parts)) for i in range(self.count)
        ]


class _Quarters(_Parts):
    parts = 4


class _Whole(_Parts):
    parts = 1


SPLITS = {"halves": _Parts, "quarters": _Quarters, "whole": _Whole}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--split", choices=SPLITS, default="halves", help="of the table")
    parser.add_argument("--record", action="store_true", help="only make the recordings")
    parser.add_argument("--deal", type=Path, help="the recordings of this folder, dealt anew")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--contributors", type=int, default=8)
    parser.add_argument("--demonstrations", type=int, default=500, help="of each contributor")
    parser.add_argument("--parts", type=int, default=1, help="recorded side by side, then joined")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--momentum", type=float, default=0.5, help="the server's")
    parser.add_argument("--drift", default="control-variates", help="none, as it was before")
    parser.add_argument("--rollouts", type=int, default=50)
    parser.add_argument("--every", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=500)
    chosen = parser.parse_args()
    kind = SPLITS[chosen.split]
    if chosen.record:
        layout = kind.make(chosen.folder, chosen.contributors)
        return _record(layout, chosen.demonstrations, chosen.parts)
    if chosen.deal:
        kind.make(chosen.folder, chosen.contributors)
    layout = kind(chosen.folder.absolute(), chosen.contributors)
    if chosen.deal:
        _deal(chosen.deal, layout)
    model = _save(chosen.folder / "model")
    models = {"models": {"whole": str(model)}}
    # One evaluation for each part of the table is enough, or two of the whole.
    held_out = [
        demo.evaluation(layout, contributor)
        for contributor in layout.contributors[: max(2, kind.parts)]
    ]
    settings = {
        "model-name": "whole",
        "num-server-rounds": chosen.rounds,
        "min-fit-clients": chosen.contributors,
        "local-steps": chosen.steps,
        "batch-size": chosen.batch,
        "initial-lr": chosen.lr,
        "warmup-steps": 100,
        "weight-decay": 0.01,
        "server-momentum": chosen.momentum,
        "server-nesterov": chosen.drift != "none",
        "drift-correction": chosen.drift,
        "eval-frequency": chosen.every,
        "eval-rollouts": chosen.rollouts,
    }
    with demo.federation(
        layout,
        cpu_threads=1,
        device=chosen.device,
        server={"evaluation": held_out, **models},
        client=models,
    ) as running:
        run_id = running.start_run(RunSettings.parse(settings, where="this bench's run"))
        _follow(running, run_id, chosen.seconds)


def _follow(running: demo.Federation, run_id: int, seconds: float) -> None:
    began, shown = time.monotonic(), 0
    journal = running.layout.runs / str(run_id)
    while True:
        lines = [x for x in read_lines(journal) if x["kind"] == "round.committed"]
        for line in lines[shown:]:
            found = line.get("evaluation") or {}
            print(
                json.dumps(
                    {
                        "round": line["round"],
                        "trained": [node["policy_loss"] for node in line.get("nodes", [])],
                        "loss": found.get("loss"),
                        "success": [d.get("success") for d in found.get("datasets", [])],
                        "at": round(time.monotonic() - began),
                    }
                ),
                flush=True,
            )
        shown = len(lines)
        if running.state(run_id).status == "finished":
            return _finish(running, run_id)
        if time.monotonic() - began > seconds:
            print("its time is over")
            return None
        running.check()
        time.sleep(1.0)


def _record(layout: Layout, demonstrations: int, parts: int) -> None:
    began = time.monotonic()
    made: dict[Path, list[Path]] = {}
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        waiting = []
        for number, contributor in enumerate(layout.contributors):
            whole = layout.recordings(contributor)
            made[whole] = [whole.with_name(f"{whole.name}-{part}") for part in range(parts)]
            first = number * 1_000_000
            each = demonstrations // parts
            wanted = [(path, each, first + 100_000 * i) for i, path in enumerate(made[whole])]
            wanted.append((layout.held_out(contributor), 15, first + 900_000))
            for path, episodes, seed in wanted:
                arguments = (path, contributor.sector, episodes, seed, IMAGE, False)
                waiting.append(pool.submit(make_recordings, *arguments))
        frames = [future.result() for future in waiting]
    for whole, pieces in made.items():
        merge_datasets(pieces, whole)
    print(f"recorded {sum(frames)} frames in {time.monotonic() - began:.0f} s", flush=True)


def _deal(source: Path, layout: _Parts) -> None:
    """Give out the recordings of another layout, by parts that are as many or fewer."""
    recorded_parts = len(list(source.glob("recordings/held-out-*")))
    for number, contributor in enumerate(layout.contributors):
        part, turn = number % layout.parts, number // layout.parts
        letters = LETTERS[part : recorded_parts : layout.parts]
        recorded = sorted(source.glob(f"recordings/[{letters}]-*"))
        share = recorded[turn :: len(layout.contributors[part :: layout.parts])]
        merge_datasets(share, layout.recordings(contributor))
        held_out = [source / "recordings" / f"held-out-{letter}" for letter in letters]
        merge_datasets(held_out, layout.held_out(contributor))


def _save(folder: Path) -> Path:
    vlm = folder / "vlm"
    tokenizer = made_tokenizer()
    SmolVLMConfig(
        architectures=["SmolVLMForConditionalGeneration"],
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        scale_factor=SHRINK,
        tie_word_embeddings=False,
        vision_config={
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "image_size": IMAGE,
            "patch_size": PATCH,
        },
        text_config={
            "model_type": "llama",
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS // 2,
            "head_dim": HIDDEN // HEADS,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 8192,
            "rms_norm_eps": 1e-5,
            "pad_token_id": tokenizer.pad_token_id,
        },
    ).save_pretrained(vlm)
    size = {"longest_edge": IMAGE}
    SmolVLMProcessor(
        image_processor=SmolVLMImageProcessor(size=size, max_image_size=size),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(
            size=size,
            max_image_size=size,
            fps=1,
            num_frames=8,
            video_sampling={"fps": 1, "max_frames": 8, "video_size": size},
        ),
        image_seq_len=(IMAGE // PATCH // SHRINK) ** 2,
    ).save_pretrained(vlm)
    config = SmolVLAConfig(
        vlm_model_name=str(vlm),
        load_vlm_weights=False,
        device="cpu",
        push_to_hub=False,
        freeze_vision_encoder=False,
        train_expert_only=False,
        resize_imgs_with_padding=(IMAGE, IMAGE),
        chunk_size=12,
        n_action_steps=6,
        num_vlm_layers=LAYERS,
        num_expert_layers=0,
        tokenizer_max_length=24,
        num_steps=5,
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
            "observation.images.top": PolicyFeature(FeatureType.VISUAL, (3, IMAGE, IMAGE)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
    )
    policy = SmolVLAPolicy(config)
    count = sum(p.numel() for p in policy.parameters() if p.requires_grad)
    print(f"{count:,} trainable parameters", flush=True)
    policy.save_pretrained(folder / "policy")
    return folder / "policy"


if __name__ == "__main__":
    main()
