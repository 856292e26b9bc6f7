"""A plain server: FastAPI before transformers pipelines, one per model folder.

    python bench/peers/plain.py --port N FOLDER [FOLDER ...]

What most teams write first. A call's texts are one padded batch; calls wait for each other, since
a pipeline's tokenizer must not be shared by two threads.
"""

from __future__ import annotations

import argparse
import threading
from typing import Any

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline


class Asked(BaseModel):
    """Texts for one of the models, by its place on the command line."""

    model: int = 0
    texts: list[str]


def create_app(folders: list[str]) -> FastAPI:
    """The app over its models."""
    app = FastAPI()
    pipelines = [pipeline("text-classification", folder, top_k=None) for folder in folders]
    lock = threading.Lock()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/classify")
    def classify(asked: Asked) -> dict[str, Any]:
        with lock:
            found = pipelines[asked.model](
                asked.texts, batch_size=len(asked.texts), truncation=True, max_length=256
            )
        return {"results": found}

    return app


def main() -> None:
    """Serve on this machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("folders", nargs="+")
    asked = parser.parse_args()
    uvicorn.run(create_app(asked.folders), port=asked.port, access_log=False)


if __name__ == "__main__":
    main()
