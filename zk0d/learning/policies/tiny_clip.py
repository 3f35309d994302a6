"""A CLIP of toy size, for policies that are built on one; nothing is downloaded.

LeRobot loads its weights from a folder, so they are written there. They do not depend on a run's
seed.
"""

from __future__ import annotations

import functools
import tempfile
from multiprocessing.util import Finalize

import torch
from tokenizers.processors import TemplateProcessing
from transformers import CLIPConfig, CLIPModel

from zk0d.learning.policies import tiny_vlm

IMAGE_SIZE = 96
PATCH = 24
LONGEST = 24  # tokens of an instruction


@functools.cache
def folder(width: int) -> tempfile.TemporaryDirectory[str]:
    """A folder with configuration, weights and tokenizer of the toy model, for this process."""
    made = tempfile.TemporaryDirectory(prefix="zk0d-tiny-clip-")
    # A worker process ends without the interpreter's own clean-up; this one it does.
    Finalize(None, made.cleanup, exitpriority=0)
    words = tiny_vlm.tokenizer()
    ends = [(words.bos_token, words.bos_token_id), (words.eos_token, words.eos_token_id)]
    # CLIP's text encoder answers with what it made of the end of a text.
    words.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{words.bos_token} $A {words.eos_token}", special_tokens=ends
    )
    size = {"hidden_size": width, "intermediate_size": 2 * width, "projection_dim": width}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={
            **size,
            **layers,
            "vocab_size": len(words),
            "max_position_embeddings": LONGEST,
            "bos_token_id": words.bos_token_id,
            "eos_token_id": words.eos_token_id,
            "pad_token_id": words.pad_token_id,
        },
        vision_config={**size, **layers, "image_size": IMAGE_SIZE, "patch_size": PATCH},
        projection_dim=width,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(made.name)
    words.save_pretrained(made.name)
    return made
