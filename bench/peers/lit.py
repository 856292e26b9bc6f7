"""LitServe with dynamic batching before one model.

    python bench/peers/lit.py --port N FOLDER

LitServe reads the annotations of ``decode_request`` at run time, so they must not be strings.
"""

import argparse
from typing import Any

import litserve
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

#: Requests that LitServe may put together, and how long it waits for them.
MAX_BATCH_REQUESTS = 64
BATCH_TIMEOUT_S = 0.005
#: Rows in one pass.
ROWS = 64


class Classifier(litserve.LitAPI):  # type: ignore[misc]
    """Every text of a batch of requests, in passes of ``ROWS``."""

    def __init__(self, folder: str) -> None:
        super().__init__(
            api_path="/classify",
            max_batch_size=MAX_BATCH_REQUESTS,
            batch_timeout=BATCH_TIMEOUT_S,
        )
        self._folder = folder

    def setup(self, device: str) -> None:
        """Load in the worker."""
        self._tokenizer = AutoTokenizer.from_pretrained(self._folder)
        self._model = AutoModelForSequenceClassification.from_pretrained(self._folder).eval()
        self._model.to(device)

    def decode_request(self, request: dict[str, Any]) -> list[str]:
        """The texts of one request."""
        texts: list[str] = request["texts"]
        return texts

    def batch(self, inputs: list[list[str]]) -> list[list[str]]:
        """Requests as they are: they differ in how many texts they carry."""
        return inputs

    def unbatch(self, output: list[Any]) -> list[Any]:
        """One answer per request."""
        return output

    def predict(self, x: list[list[str]]) -> list[list[list[dict[str, Any]]]]:
        """Scores of all texts, given back request by request."""
        texts = [text for request in x for text in request]
        scored = iter(
            [
                answer
                for start in range(0, len(texts), ROWS)
                for answer in self._score(texts[start : start + ROWS])
            ]
        )
        return [[next(scored) for _ in request] for request in x]

    def encode_response(self, output: list[list[dict[str, Any]]]) -> dict[str, Any]:
        """The answer's body."""
        return {"results": output}

    @torch.inference_mode()
    def _score(self, texts: list[str]) -> list[list[dict[str, Any]]]:
        encoded = self._tokenizer(
            texts, padding=True, truncation=True, max_length=256, return_tensors="pt"
        )
        scores = self._model(**encoded).logits.softmax(-1).tolist()
        names = self._model.config.id2label
        return [[{"label": names[i], "score": s} for i, s in enumerate(row)] for row in scores]


def main() -> None:
    """Serve on this machine."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("folder")
    asked = parser.parse_args()
    server = litserve.LitServer(Classifier(asked.folder), accelerator="cpu", timeout=120)
    server.run(host="127.0.0.1", port=asked.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
