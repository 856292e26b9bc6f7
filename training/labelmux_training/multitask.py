"""The recipe of the bundled encoder, phase 2: supervised training on many labelled sets at once.

Phase 1 copies a sentence embedder, which knows topics but little of sentiment or of how two texts
relate. Here the whole encoder learns from labelled sets, each through throw-away heads that see
what a frozen readout sees: a linear layer on the mean of the last layer, and a small Y-Tuning
decoder over all layers. Beside them the distillation loss on plain text goes on, so that what the
encoder knew stays. It resumes from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from labelmux_adapters.ytuning import YTuning, YTuningSizes
from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.model import derive, run_padded
from labelmux_encoder.weights import load_plain
from labelmux_training.corpus import Batch, Corpus, read_lines
from labelmux_training.distil import HELD_OUT_LINES, Teacher, cosines, distillation_loss, pooled
from labelmux_training.run_folder import RunFolder
from labelmux_training.source_tasks import (
    SourceTask,
    TaskBatch,
    TaskSampler,
    choose_sets,
    read_task,
)
from labelmux_training.student import student_config

#: Learning rates of what every set shares, and of what it has for itself and rarely trains.
_SHARED_RATE, _OWN_RATE = 1e-3, 5e-3
_CLIP_NORM = 1.0
_LOG_STEPS = 50
#: Width and heads of the Y-Tuning decoder.
_WIDTH, _HEADS = 128, 4


class Heads(nn.Module):
    """Throw-away heads. Sets with the same labels share theirs; the decoder's body is one for all.

    A set is drawn too seldom to train a decoder of its own, so it owns a linear layer, a task
    vector and label vectors.
    """

    def __init__(self, config: EncoderConfig, tasks: Sequence[SourceTask]) -> None:
        super().__init__()
        self._key = {task.name: "|".join(task.labels).replace(".", "_") for task in tasks}
        self._dropout = nn.Dropout(0.1)
        self._decoder_in_use = Lock()
        sizes = YTuningSizes(config.hidden_size, config.num_layers + 1, _WIDTH, _HEADS, 2 * _WIDTH)
        self.decoder = YTuning(sizes, labels=1)
        self.linear = nn.ModuleDict()
        self.vectors = nn.ParameterDict()
        for task in tasks:
            count, key = len(task.labels), self._key[task.name]
            self.linear[key] = nn.Linear(config.hidden_size, count)
            self.vectors[key] = nn.Parameter(torch.randn(1 + count, _WIDTH) * 0.02)

    def own(self) -> list[nn.Parameter]:
        """Parameters that are not every set's."""
        return [*self.linear.parameters(), *self.vectors.parameters()]

    def forward(self, task: str, states: list[Tensor], mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the linear layer and of the decoder. L+1 of [B, T, H], [B, T] -> 2 of [B, K]"""
        key = self._key[task]
        linear = self.linear[key](self._dropout(pooled(states[-1], mask)))
        vectors = self.vectors[key]
        own = {"task_vector": vectors[0], "label_vectors": vectors[1:]}
        # functional_call puts the set's vectors into the one module for as long as it runs.
        with self._decoder_in_use:
            decoder = functional_call(self.decoder, own, (torch.stack(states), mask))
        return linear, decoder


@dataclass(frozen=True, slots=True)
class _Losses:
    """What one thread saw; losses of heads are relative to a blind guess."""

    task: str
    tokens: int
    distillation: float
    linear: float
    decoder: float
    accuracy: float


class MultiTask:
    """A run that can stop and go on: encoder, heads, optimiser and progress.

    Batches of a step run on threads of their own with one core each, which is twice as fast as one
    batch on all cores; the order of their sums is not fixed, so neither is the last bit.
    """

    def __init__(self, asked: argparse.Namespace) -> None:
        torch.manual_seed(asked.seed)
        self._asked = asked
        self._folder = RunFolder(asked.out)
        raw_config = student_config(json.loads((asked.teacher / "config.json").read_text()))
        self._config = EncoderConfig.from_checkpoint(raw_config)
        tokenizer = Tokenizer.from_file(str(asked.teacher / "tokenizer.json"))
        tokenizer.no_padding()
        tasks = [
            read_task(asked.source / f"{name}.jsonl.gz", tokenizer)
            for name in choose_sets(asked.source, asked.sets)
        ]
        self._labels = {task.name: task.labels for task in tasks}
        self._heads = Heads(self._config, tasks)
        start = load_plain(asked.start_from)
        self._state = {n: tensor.float().requires_grad_() for n, tensor in start["state"].items()}
        # An earlier run of this phase leaves heads too; sets that are new here start afresh.
        self._heads.load_state_dict(start.get("heads", {}), strict=False)
        self._optimiser = torch.optim.AdamW(
            [
                {"params": list(self._state.values()), "rate": asked.learning_rate},
                {"params": list(self._heads.decoder.parameters()), "rate": _SHARED_RATE},
                {"params": self._heads.own(), "rate": _OWN_RATE},
            ],
            weight_decay=0.0,
            betas=(0.9, 0.98),
            fused=True,
        )
        self._pool = ThreadPoolExecutor(
            asked.threads, initializer=torch.set_num_threads, initargs=(1,)
        )
        self._tokens_seen = 0
        self._resume()
        self._teacher = Teacher(asked.teacher)
        seed = asked.seed + self._tokens_seen
        self._sampler = TaskSampler(
            tasks, asked.batch_tokens, asked.temper, asked.pair_weight, seed
        )
        self._read_corpus(tokenizer, seed)
        self._losses: dict[str, list[float]] = defaultdict(list)
        #: Of the linear layers, by set, since the last checkpoint.
        self._accuracies: dict[str, list[float]] = defaultdict(list)

    def _read_corpus(self, tokenizer: Tokenizer, seed: int) -> None:
        lines = read_lines(self._asked.corpus)
        random.Random(self._asked.seed).shuffle(lines)
        held, rest = lines[:HELD_OUT_LINES], lines[HELD_OUT_LINES:]
        size = self._asked.plain_tokens
        held_out = Corpus(held, tokenizer, 3072, 0)
        self._held_out = {
            "short": held_out.short_batches(held[:300], pairs=False),
            "long": held_out.long_batches(held)[-3:],
        }
        corpus = Corpus(rest, tokenizer, size, seed, self._asked.long_share, pair_share=0.0)
        self._plain = corpus.batches()

    def _resume(self) -> None:
        saved = self._folder.saved()
        if saved is None:
            return
        with torch.no_grad():
            for name, tensor in self._state.items():
                tensor.copy_(saved["state"][name])
        self._heads.load_state_dict(saved["heads"])
        self._optimiser.load_state_dict(saved["optimiser"])
        self._tokens_seen = saved["tokens_seen"]

    def _save(self) -> None:
        self._folder.save(
            state={name: tensor.detach() for name, tensor in self._state.items()},
            heads=self._heads.state_dict(),
            optimiser=self._optimiser.state_dict(),
            tokens_seen=self._tokens_seen,
        )
        self._log(
            **cosines(self._config, self._state, self._teacher, self._held_out),
            accuracy=_means(self._accuracies, 3),
        )

    def _log(self, **values: Any) -> None:
        self._folder.log(tokens=self._tokens_seen, **values)

    def run(self) -> None:
        """Train until the token budget is spent, checkpointing as it goes."""
        with self._pool:
            self._run()

    def _run(self) -> None:
        started = last_save = time.monotonic()
        first_tokens, step = self._tokens_seen, 0
        while self._tokens_seen < self._asked.tokens:
            self._step()
            step += 1
            if step % _LOG_STEPS == 0:
                rate = (self._tokens_seen - first_tokens) / (time.monotonic() - started)
                self._log(tokens_per_s=round(rate), **_means(self._losses, 5))
            if time.monotonic() - last_save > self._asked.save_every_s:
                self._save()
                last_save = time.monotonic()
        self._save()

    def _step(self) -> None:
        """One update: on each thread a batch of labelled rows and one of plain text."""
        self._set_rates()
        self._optimiser.zero_grad(set_to_none=True)
        drawn = [(self._sampler.draw(), next(self._plain)) for _ in range(self._asked.threads)]
        for found in self._pool.map(self._gradients, drawn):
            self._note(found)
        nn.utils.clip_grad_norm_(self._state.values(), _CLIP_NORM)
        nn.utils.clip_grad_norm_(self._heads.parameters(), _CLIP_NORM)
        self._optimiser.step()

    def _gradients(self, drawn: tuple[TaskBatch, Batch]) -> _Losses:
        """Add a thread's share of the gradients to the parameters'."""
        labelled, plain = drawn
        longest = max(labelled.batch.token_ids.shape[1], plain.token_ids.shape[1])
        tensors = derive(self._config, self._state, max_tokens=longest)

        def encode(batch: Batch) -> list[Tensor]:
            with self._precision():
                states = run_padded(self._config, tensors, batch.token_ids, batch.mask)
            return [each.float() for each in states]

        with self._precision():
            target = [each.float() for each in self._teacher(plain)]
        logits = self._heads(labelled.task, encode(labelled.batch), labelled.batch.mask)
        linear, decoder = (functional.cross_entropy(each, labelled.gold) for each in logits)
        kept = distillation_loss(encode(plain), target, plain.mask)
        chance = math.log(len(self._labels[labelled.task]))
        both = linear if self._asked.linear_only else (linear + decoder) / 2
        loss = both / math.sqrt(chance) + self._asked.distillation_weight * kept
        (loss / self._asked.threads).backward()
        return _Losses(
            task=labelled.task,
            tokens=int(labelled.batch.mask.sum()) + int(plain.mask.sum()),
            distillation=kept.item(),
            linear=linear.item() / chance,
            decoder=decoder.item() / chance,
            accuracy=(logits[0].argmax(1) == labelled.gold).float().mean().item(),
        )

    def _precision(self) -> torch.autocast:
        """Products in bfloat16 if asked; weights, sums and losses stay fp32."""
        return torch.autocast("cpu", torch.bfloat16, enabled=self._asked.bfloat16)

    def _note(self, found: _Losses) -> None:
        self._tokens_seen += found.tokens
        for name in ("distillation", "linear", "decoder"):
            self._losses[name].append(getattr(found, name))
        self._accuracies[found.task].append(found.accuracy)

    def _set_rates(self) -> None:
        done = min(1.0, self._tokens_seen / self._asked.tokens)
        warm_up = min(1.0, 0.02 + done / 0.03)
        decay = 0.5 * (1 + math.cos(math.pi * done))
        for group in self._optimiser.param_groups:
            group["lr"] = group["rate"] * warm_up * decay


def _means(values: dict[str, list[float]], digits: int) -> dict[str, float]:
    """The mean of each list, which are emptied."""
    means = {name: round(sum(each) / len(each), digits) for name, each in sorted(values.items())}
    values.clear()
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--teacher", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="plain text")
    parser.add_argument("--source", type=Path, required=True, help="folder of labelled sets")
    parser.add_argument("--sets", nargs="+", help="which of them; all but help_and_or by default")
    parser.add_argument("--start-from", type=Path, required=True, help="checkpoint of phase 1")
    parser.add_argument("--out", type=Path, required=True, help="folder for checkpoint and log")
    parser.add_argument("--tokens", type=int, default=8_000_000, help="token budget")
    parser.add_argument("--batch-tokens", type=int, default=512, help="padded tokens of a batch")
    parser.add_argument("--plain-tokens", type=int, default=128, help="the same, of plain text")
    parser.add_argument("--threads", type=int, default=4, help="batches of each kind a step")
    parser.add_argument("--bfloat16", action="store_true", help="for CPUs that have it")
    parser.add_argument("--learning-rate", type=float, default=1.5e-4)
    parser.add_argument("--temper", type=float, default=0.5, help="power of a set's size")
    parser.add_argument("--pair-weight", type=float, default=1.5, help="of sets of pairs")
    parser.add_argument("--distillation-weight", type=float, default=1.0)
    parser.add_argument("--long-share", type=float, default=0.1, help="passages in long rows")
    parser.add_argument("--linear-only", action="store_true", help="no Y-Tuning decoders")
    parser.add_argument("--save-every-s", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=13)
    MultiTask(parser.parse_args()).run()


if __name__ == "__main__":
    main()
