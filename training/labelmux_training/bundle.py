"""The recipe of the bundled encoder, last step: a checkpoint into the folder that ships.

Weights are stored as int8 rows; the scores written beside them are those of the stored form.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression
from tokenizers import Tokenizer
from torch import Tensor

from labelmux_encoder.config import EncoderConfig
from labelmux_encoder.model import derive, run_padded
from labelmux_encoder.storage import INT8_ROWS, pack_int8_rows, unpack_int8_rows
from labelmux_encoder.weights import load_plain
from labelmux_training.corpus import Batch, Corpus, pad
from labelmux_training.distil import Teacher, cosines, pooled
from labelmux_training.student import student_config

PROBE_SETS = ("banking77", "clinc150", "trec", "sst2", "ag_news", "emotion")
PROBE_ROWS = 3000
_BATCH_TOKENS = 4096


def write_bundle(checkpoint: Path, teacher: Path, out: Path) -> dict[str, Tensor]:
    """Write config, tokenizer and int8 weights, and return the weights as they will be read."""
    out.mkdir(parents=True, exist_ok=True)
    config = student_config(json.loads((teacher / "config.json").read_text()))
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    tokenizer = Tokenizer.from_file(str(teacher / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)
    state = load_plain(checkpoint)["state"]
    packed = pack_int8_rows({name: tensor.contiguous() for name, tensor in state.items()})
    save_file(packed, out / "model.safetensors", metadata={"labelmux.storage": INT8_ROWS})
    # save_file leaves the file to its owner alone; a package is read by others too.
    (out / "model.safetensors").chmod(0o644)
    return unpack_int8_rows(packed)


class Judge:
    """Compares encoders with the teacher on the dev splits of labelled sets."""

    def __init__(self, teacher: Path, data: Path) -> None:
        self._data = data
        self._teacher = Teacher(teacher)
        self._config = EncoderConfig.from_checkpoint(
            student_config(json.loads((teacher / "config.json").read_text()))
        )
        self._tokenizer = Tokenizer.from_file(str(teacher / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._teacher_probes: dict[str, float] = {}

    def cosine_scores(self, state: dict[str, Tensor]) -> dict[str, float]:
        """Token and pooled cosine to the teacher on dev texts, alone and joined to 512 tokens."""
        texts = [row["text"] for name in PROBE_SETS for row in self._rows(name, "dev")[:150]]
        corpus = Corpus(texts, self._tokenizer, _BATCH_TOKENS, seed=0)
        joined = [batch for batch in corpus.long_batches(texts) if batch.token_ids.shape[1] >= 500]
        short = corpus.short_batches(texts, pairs=False)
        return cosines(self._config, state, self._teacher, {"to_128": short, "at_512": joined})

    @torch.no_grad()
    def probe_scores(self, state: dict[str, Tensor]) -> dict[str, dict[str, float]]:
        """Dev accuracy in points of a linear probe on pooled features: teacher and student."""
        tensors = derive(self._config, state)

        def student(batch: Batch) -> Tensor:
            return run_padded(self._config, tensors, batch.token_ids, batch.mask)[-1]

        def teacher(batch: Batch) -> Tensor:
            return self._teacher(batch)[-1]

        scores: dict[str, dict[str, float]] = {}
        for name in PROBE_SETS:
            if name not in self._teacher_probes:
                self._teacher_probes[name] = self._probe(name, teacher)
            scores[name] = {
                "teacher": self._teacher_probes[name],
                "student": self._probe(name, student),
            }
        return scores

    def _probe(self, name: str, encode: Any) -> float:
        train, dev = self._rows(name, "train")[:PROBE_ROWS], self._rows(name, "dev")[:PROBE_ROWS]
        features = self._pooled([row["text"] for row in train + dev], encode)
        labels = np.array([row["label"] for row in train + dev])
        probe = LogisticRegression(C=10.0, max_iter=2000)
        probe.fit(features[: len(train)], labels[: len(train)])
        return 100 * float(probe.score(features[len(train) :], labels[len(train) :]))

    def _pooled(self, texts: list[str], encode: Any) -> NDArray[np.float32]:
        self._tokenizer.enable_truncation(128)
        rows = [encoding.ids for encoding in self._tokenizer.encode_batch(texts)]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
        result = np.zeros((len(rows), self._config.hidden_size), np.float32)
        for start in range(0, len(order), 64):
            chosen = order[start : start + 64]
            batch = pad([rows[index] for index in chosen])
            vectors = torch.nn.functional.normalize(pooled(encode(batch), batch.mask), dim=-1)
            result[chosen] = vectors.numpy()
        return result

    def _rows(self, name: str, split: str) -> list[dict[str, Any]]:
        with gzip.open(self._data / name / f"{split}.jsonl.gz", "rt") as lines:
            return [json.loads(line) for line in lines]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="checkpoint.pt of distil")
    parser.add_argument("--teacher", type=Path, required=True, help="folder of all-MiniLM-L6-v2")
    parser.add_argument("--data", type=Path, help="labelled sets to judge it on; none: not judged")
    parser.add_argument("--out", type=Path, required=True, help="the bundled encoder's folder")
    arguments = parser.parse_args()
    stored = write_bundle(arguments.checkpoint, arguments.teacher, arguments.out)
    if arguments.data is None:
        return
    exact = load_plain(arguments.checkpoint)["state"]
    judge = Judge(arguments.teacher, arguments.data)
    for form, state in (("float32", exact), ("int8-rows", stored)):
        probes = judge.probe_scores(state)
        loss = np.mean([scores["teacher"] - scores["student"] for scores in probes.values()])
        line = {
            "form": form,
            "cosine": judge.cosine_scores(state),
            "probe_dev_accuracy": probes,
            "mean_points_below_teacher": round(float(loss), 3),
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
