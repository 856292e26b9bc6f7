"""The recipe of the bundled encoder, phase 1: a small DeBERTa-v2 distilled from MiniLM.

Every content weight starts from the teacher (all-MiniLM-L6-v2, a BERT). What BERT lacks, the
disentangled position terms, starts near zero and is learned by matching the teacher's hidden states
on plain text. Run it with ``make bundled-encoder``; it resumes from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional

from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.model import derive, run_padded
from labelmux_encoder.weights import load_plain
from labelmux_training.corpus import Batch, Corpus, read_lines
from labelmux_training.run_folder import RunFolder
from labelmux_training.student import student_config, warm_start

HELD_OUT_LINES = 1000


def pooled(hidden: Tensor, mask: Tensor) -> Tensor:
    """Mean over real tokens. [B, T, H], [B, T] -> [B, H]"""
    weights = mask.unsqueeze(-1).to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


class Teacher:
    """The BERT that the student learns from."""

    def __init__(self, folder: Path) -> None:
        from transformers import BertModel

        self._model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()

    @torch.no_grad()
    def __call__(self, batch: Batch) -> list[Tensor]:
        """All hidden states, token type 0 throughout. L+1 of [B, T, H]"""
        outputs = self._model(
            input_ids=batch.token_ids,
            attention_mask=batch.mask.long(),
            output_hidden_states=True,
        )
        return list(outputs.hidden_states)


def distillation_loss(student: list[Tensor], teacher: list[Tensor], mask: Tensor) -> Tensor:
    """Squared error of every layer relative to the teacher's, and the cosine of pooled vectors."""
    total = torch.zeros(())
    for layer in range(1, len(teacher)):
        ours, theirs = student[layer][mask], teacher[layer][mask]
        error = (ours - theirs).square().sum(-1) / theirs.square().sum(-1)
        last = layer == len(teacher) - 1
        total = total + error.mean() * (3.0 if last else 1.0)
        if last:
            total = total + (1 - functional.cosine_similarity(ours, theirs, dim=-1)).mean()
    cosine = functional.cosine_similarity(
        pooled(student[-1], mask), pooled(teacher[-1], mask), dim=-1
    )
    return total + 2.0 * (1 - cosine).mean()


@torch.no_grad()
def cosines(
    config: EncoderConfig,
    state: dict[str, Tensor],
    teacher: Teacher,
    batches: dict[str, list[Batch]],
) -> dict[str, float]:
    """Mean cosine to the teacher per token of the last layer, and of the mean-pooled vectors."""
    tensors = derive(config, state)
    scores: dict[str, float] = {}
    for name, group in batches.items():
        token, whole = [], []
        for batch in group:
            ours = run_padded(config, tensors, batch.token_ids, batch.mask)[-1]
            theirs = teacher(batch)[-1]
            token.append(functional.cosine_similarity(ours, theirs, dim=-1)[batch.mask])
            whole.append(
                functional.cosine_similarity(
                    pooled(ours, batch.mask), pooled(theirs, batch.mask), dim=-1
                )
            )
        scores[f"{name}_token"] = torch.cat(token).mean().item()
        scores[f"{name}_pooled"] = torch.cat(whole).mean().item()
    return scores


class Distillation:
    """A run that can stop and go on: student, optimiser and progress, in one checkpoint file."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._folder = RunFolder(arguments.out)
        teacher_raw = json.loads((arguments.teacher / "config.json").read_text())
        self.raw_config = student_config(teacher_raw)
        self.config = EncoderConfig.from_checkpoint(self.raw_config)
        initial = warm_start(
            self.raw_config, load_file(arguments.teacher / "model.safetensors"), arguments.seed
        )
        self.state = {name: tensor.requires_grad_() for name, tensor in initial.items()}
        self._optimiser = torch.optim.AdamW(
            self._parameter_groups(),
            lr=arguments.learning_rate,
            weight_decay=0.0,
            betas=(0.9, 0.98),
            fused=True,
        )
        self._tokens_seen = 0
        self._teacher = Teacher(arguments.teacher)
        tokenizer = Tokenizer.from_file(str(arguments.teacher / "tokenizer.json"))
        tokenizer.no_padding()
        lines = read_lines(arguments.corpus)
        random.Random(arguments.seed).shuffle(lines)
        held = Corpus(lines[:HELD_OUT_LINES], tokenizer, arguments.batch_tokens, 0)
        self._held_out = {
            "short": held.short_batches(lines[:300], pairs=False),
            "long": held.long_batches(lines[:HELD_OUT_LINES])[-3:],
        }
        if arguments.start_from is not None:
            self._load_state(load_plain(arguments.start_from)["state"])
        self._resume()
        self._corpus = Corpus(
            lines[HELD_OUT_LINES:],
            tokenizer,
            arguments.batch_tokens,
            arguments.seed + self._tokens_seen,
            arguments.long_share,
        )

    def _parameter_groups(self) -> list[dict[str, Any]]:
        fresh = [t for n, t in self.state.items() if "pos_" in n or "rel_embeddings" in n]
        warm = [t for n, t in self.state.items() if not ("pos_" in n or "rel_embeddings" in n)]
        return [{"params": fresh, "scale": 2.0}, {"params": warm, "scale": 1.0}]

    def _resume(self) -> None:
        saved = self._folder.saved()
        if saved is None:
            return
        self._load_state(saved["state"])
        self._optimiser.load_state_dict(saved["optimiser"])
        self._tokens_seen = saved["tokens_seen"]

    def _load_state(self, saved: dict[str, Tensor]) -> None:
        with torch.no_grad():
            for name, tensor in self.state.items():
                tensor.copy_(saved[name])

    def _save(self) -> None:
        self._folder.save(
            state={name: tensor.detach() for name, tensor in self.state.items()},
            optimiser=self._optimiser.state_dict(),
            tokens_seen=self._tokens_seen,
        )

    def _log(self, **values: Any) -> None:
        self._folder.log(tokens=self._tokens_seen, **values)

    def _set_learning_rate(self) -> None:
        done = self._tokens_seen / self._arguments.tokens
        warm_up = min(1.0, done / 0.03)
        decay = 0.5 * (1 + math.cos(math.pi * min(1.0, done))) * 0.98 + 0.02
        for group in self._optimiser.param_groups:
            group["lr"] = (
                self._arguments.learning_rate * group["scale"] * max(0.02, warm_up) * decay
            )

    def run(self) -> None:
        """Train until the token budget is spent, checkpointing as it goes."""
        self._log(**cosines(self.config, self.state, self._teacher, self._held_out))
        batches = self._corpus.batches()
        started, last_save, first_tokens = time.monotonic(), time.monotonic(), self._tokens_seen
        step = 0
        while self._tokens_seen < self._arguments.tokens:
            loss = self._step(next(batches))
            step += 1
            if step % 50 == 0:
                rate = (self._tokens_seen - first_tokens) / (time.monotonic() - started)
                self._log(loss=round(loss, 5), tokens_per_s=round(rate))
            if time.monotonic() - last_save > self._arguments.save_every_s:
                self._save()
                self._log(**cosines(self.config, self.state, self._teacher, self._held_out))
                last_save = time.monotonic()
        self._save()
        self._log(**cosines(self.config, self.state, self._teacher, self._held_out))

    def _step(self, batch: Batch) -> float:
        self._set_learning_rate()
        target = self._teacher(batch)
        tensors = derive(self.config, self.state, max_tokens=batch.token_ids.shape[1])
        student = run_padded(self.config, tensors, batch.token_ids, batch.mask)
        loss = distillation_loss(student, target, batch.mask)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.state.values(), 1.0)
        self._optimiser.step()
        self._tokens_seen += int(batch.mask.sum())
        return loss.item()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument(
        "--corpus", type=Path, nargs="+", required=True, help="text, a passage a line"
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint and log")
    parser.add_argument("--tokens", type=int, default=6_000_000, help="token budget")
    parser.add_argument("--batch-tokens", type=int, default=3072, help="padded tokens a step")
    parser.add_argument("--learning-rate", type=float, default=4e-4)
    parser.add_argument("--save-every-s", type=float, default=300.0)
    parser.add_argument("--long-share", type=float, default=0.15, help="passages in long rows")
    parser.add_argument("--start-from", type=Path, help="checkpoint of an earlier stage")
    parser.add_argument("--seed", type=int, default=13)
    Distillation(parser.parse_args()).run()


if __name__ == "__main__":
    main()
