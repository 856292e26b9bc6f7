"""PEFT mixed batches: one model, many LoRA adapters, a row of a batch for any of them.

    python bench/peers/mixed_lora.py --port N --adapters 32 FOLDER

The adapters are random but fixed by a seed; "__base__" is the model without any.
"""

from __future__ import annotations

import argparse
import threading
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from peft import LoraConfig, get_peft_model
from pydantic import BaseModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

RANK = 8
TARGETS = ["query_proj", "value_proj"]


class Asked(BaseModel):
    """Texts, and for each the adapter that reads it."""

    adapters: list[str]
    texts: list[str]


class Model:
    """The model and its adapters. Calls wait for each other."""

    def __init__(self, folder: str, adapters: int) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        base = AutoModelForSequenceClassification.from_pretrained(folder)
        torch.manual_seed(0)
        # Without init_lora_weights=False every adapter would start as the identity.
        config = LoraConfig(r=RANK, target_modules=TARGETS, init_lora_weights=False)
        self._model = get_peft_model(base, config, adapter_name="adapter-0")
        for index in range(1, adapters):
            self._model.add_adapter(f"adapter-{index}", config)
        self._model.eval()
        self._lock = threading.Lock()

    @property
    def module(self) -> Any:
        """The model itself."""
        return self._model

    @torch.inference_mode()
    def scores(self, texts: list[str], adapters: list[str]) -> list[list[float]]:
        """Probabilities, one row per text."""
        with self._lock:
            encoded = self._tokenizer(
                texts, padding=True, truncation=True, max_length=256, return_tensors="pt"
            )
            logits = self._model(**encoded, adapter_names=adapters).logits
            found: list[list[float]] = logits.softmax(-1).tolist()
        return found

    @property
    def labels(self) -> dict[int, str]:
        """Names by place."""
        names: dict[int, str] = self._model.config.id2label
        return names


def create_app(model: Model) -> FastAPI:
    """The app over one model."""
    app = FastAPI()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/classify")
    def classify(asked: Asked) -> dict[str, Any]:
        scored = model.scores(asked.texts, asked.adapters)
        return {
            "results": [
                [{"label": model.labels[i], "score": score} for i, score in enumerate(row)]
                for row in scored
            ]
        }

    return app


def main() -> None:
    """Serve on this machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--adapters", type=int, default=32)
    parser.add_argument("folder")
    asked = parser.parse_args()
    app = create_app(Model(asked.folder, asked.adapters))
    uvicorn.run(app, port=asked.port, access_log=False)


if __name__ == "__main__":
    main()
