"""A small real encoder, adapters for it and servers on it, made on the spot, without a network.

Torch is imported inside the fixtures, so that the client's tests run where there is none.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from labelmux_adapters.files import Adapter
    from labelmux_encoder.weights import LoadedEncoder

START_LIMIT_S = 90.0

WORDS = (
    "the train to the coast leaves at nine and the bus at ten",
    "a good film with a warm heart and a slow start",
    "the soup was cold, the bread was stale and nobody cared!",
    "what is the capital of the country? where do rivers begin?",
    "please send the money back to my card, i never ordered this",
    "win a free prize now, call 12345 today; text yes to claim",
    "two dogs play in the snow while a man reads a newspaper",
    "it's bad, awful, terrible; it's great, lovely, wonderful",
)

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")

TINY_CONFIG: dict[str, Any] = {
    "model_type": "deberta-v2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-7,
    "max_position_embeddings": 64,
    "relative_attention": True,
    "position_buckets": 16,
    "max_relative_positions": -1,
    "position_biased_input": False,
    "pos_att_type": ["p2c", "c2p"],
    "norm_rel_ebd": "layer_norm",
    "share_att_key": False,
    "type_vocab_size": 0,
    "pad_token_id": 0,
}


def write_wordpiece(folder: Path) -> int:
    """Save a WordPiece tokenizer of the words of ``WORDS`` and return its vocabulary's size.

    It is not trained: that breaks ties differently in every process, and what tests learn with it.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    splitter = pre_tokenizers.BertPreTokenizer()
    words = {word for line in WORDS for word, _ in splitter.pre_tokenize_str(line.lower())}
    letters = {letter for word in words for letter in word}
    pieces = sorted(words | letters | {f"##{letter}" for letter in letters})
    vocab = {piece: at for at, piece in enumerate([*SPECIAL_TOKENS, *pieces])}
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return tokenizer.get_vocab_size()


@pytest.fixture(scope="session")
def tiny_encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder in the Hugging Face layout with seeded random weights."""
    import torch
    from safetensors.torch import save_file

    from labelmux_encoder.config import EncoderConfig
    from labelmux_encoder.weights import expected_shapes

    folder = tmp_path_factory.mktemp("tiny-encoder")
    config = TINY_CONFIG | {"vocab_size": write_wordpiece(folder)}
    (folder / "config.json").write_text(json.dumps(config))
    generator = torch.Generator().manual_seed(7)
    state = {}
    for name, shape in expected_shapes(EncoderConfig.from_checkpoint(config)).items():
        noise = torch.randn(shape, generator=generator)
        state[name] = 1 + 0.1 * noise if name.endswith("LayerNorm.weight") else 0.2 * noise
    save_file(state, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tiny_encoder_folder: Path) -> LoadedEncoder:
    """The tiny encoder, loaded."""
    from labelmux_encoder.weights import load_encoder

    return load_encoder(str(tiny_encoder_folder))


@pytest.fixture(scope="session")
def make_adapter(tiny_encoder: LoadedEncoder) -> Callable[..., Adapter]:
    """A maker of adapters that act: random tensors, and canaries as the serving path has them."""
    import datetime

    import torch

    from labelmux_adapters.canaries import serve_logits
    from labelmux_adapters.files import read_adapter, write_adapter
    from labelmux_adapters.manifest import Canary, Manifest
    from labelmux_adapters.methods import METHODS

    def make(
        labels: tuple[str, ...] = ("a", "b"),
        seed: int = 0,
        task_kind: str = "single_label",
        pair: bool = False,
        width: int = 8,
        max_tokens: int = 64,
        method: str = "ytuning",
        sizes: dict[str, int] | None = None,
        **fields: Any,
    ) -> Adapter:
        own = {"states": 3, "width": width, "heads": 2, "ffn": 2 * width}
        if edited := METHODS[method].edited:
            own = {"layers": 2, "intermediate": 48, **edited.defaults, **(sizes or {})}
            if task_kind != "token":
                fields.setdefault("pooling", "mean")
        sizes = {"hidden": 32, **own}
        generator = torch.Generator().manual_seed(seed)
        specs = METHODS[method].expected_tensors(sizes, len(labels), task_kind)
        tensors = {
            name: torch.randn(spec.shape, generator=generator) for name, spec in specs.items()
        }
        texts = [(text, WORDS[0]) if pair else text for text in WORDS[:4]]
        count = sum(spec.values for spec in specs.values())
        manifest = Manifest(
            task_kind=task_kind,
            labels=labels,
            method=method,
            sizes=sizes,
            encoder="tiny",
            encoder_fingerprint=tiny_encoder.encoder.fingerprint,
            max_tokens=max_tokens,
            pair=pair,
            metrics={},
            parameters=count,
            parameter_share=count / tiny_encoder.encoder.parameter_count,
            data_digest="sha256:" + "0" * 64,
            created_at=datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
            canaries=tuple(
                Canary(
                    text=text[0] if isinstance(text, tuple) else text,
                    pair=text[1] if isinstance(text, tuple) else None,
                    logits=(0.0,) * len(labels),
                )
                for text in texts
            ),
            **fields,
        )
        draft = read_adapter(write_adapter(manifest, tensors))
        logits = serve_logits(draft, tiny_encoder, texts)
        canaries = tuple(
            canary.model_copy(update={"logits": tuple(row.ravel().tolist())})
            for canary, row in zip(manifest.canaries, logits, strict=True)
        )
        done = manifest.model_copy(update={"canaries": canaries})
        return read_adapter(write_adapter(done, tensors))

    return make


@pytest.fixture(scope="session")
def adapter_bytes(make_adapter) -> Callable[..., bytes]:
    """The file of an adapter made by ``make_adapter``."""
    from labelmux_adapters.files import write_adapter

    def make(*args: Any, **kwargs: Any) -> bytes:
        adapter = make_adapter(*args, **kwargs)
        return write_adapter(adapter.manifest, adapter.tensors)

    return make


MODULE = ("-m", "labelmux_server")


class ServerProcess:
    """``python -m labelmux_server`` on a free port of this machine."""

    def __init__(
        self, folder: Path, encoder: Path, *flags: str, program: tuple[str, ...] = MODULE
    ) -> None:
        """``program``: what Python runs."""
        self._log = (folder / "server.log").open("ab")
        self.state_dir = folder / "state"
        self.process = subprocess.Popen(
            [
                *(sys.executable, *program, "--port", "0", "--no-demo"),
                *("--state-dir", str(self.state_dir), "--encoder", str(encoder)),
                # What is faster may change under load; random adapters know one precision.
                *("--dtype", "float32", *flags),
            ],
            stdout=subprocess.PIPE,
            stderr=self._log,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        self.log_path = folder / "server.log"
        self.url = ""

    def wait_ready(self) -> ServerProcess:
        """Return once the server has said that it serves."""
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_LIMIT_S)
        line = self.process.stdout.readline().decode() if ready else ""
        assert "serving" in line, self.log_path.read_text()
        self.url = next(word for word in line.split() if word.startswith("http://"))
        return self

    def kill(self) -> None:
        """End it as a power cut would."""
        self.process.kill()
        self.process.wait()

    def terminate(self) -> None:
        """Ask it to drain."""
        self.process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        """Reap it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()


@contextlib.contextmanager
def servers_on(folder: Path, encoder: Path) -> Iterator[Callable[..., ServerProcess]]:
    """A starter of real servers, all on one state folder; each is reaped."""
    with contextlib.ExitStack() as started:

        def start(*flags: str, program: tuple[str, ...] = MODULE) -> ServerProcess:
            server = ServerProcess(folder, encoder, *flags, program=program)
            started.callback(server.close)
            return server.wait_ready()

        yield start


@pytest.fixture
def start_server(tmp_path, tiny_encoder_folder) -> Iterator[Callable[..., ServerProcess]]:
    """A starter of real servers for one test."""
    with servers_on(tmp_path, tiny_encoder_folder) as start:
        yield start


@pytest.fixture(scope="module")
def start_shared_server(
    tmp_path_factory, tiny_encoder_folder
) -> Iterator[Callable[..., ServerProcess]]:
    """A starter of real servers for all tests of a file."""
    with servers_on(tmp_path_factory.mktemp("shared"), tiny_encoder_folder) as start:
        yield start
