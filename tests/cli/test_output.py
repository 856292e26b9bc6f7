"""What people see: bars, plain words, sizes."""

import io

import pytest
from rich.console import Console

from labelmux_cli import bars, errors, output
from labelmux_client._errors import CODES


@pytest.mark.parametrize(
    ("size_bytes", "shown"), [(12, "12 B"), (2048, "2 KiB"), (1_500_000, "1.4 MiB")]
)
def test_sizes(size_bytes, shown):
    assert output.size(size_bytes) == shown


def test_plain_text_has_no_markup_and_moves_no_cursor():
    text = output.plain("[red]a[/red]\x1b[2J\r\n\u202eb")
    assert text.plain == "[red]a[/red] [2J   b"
    assert text.spans == []


def test_bars_show_rate_time_left_and_notes(monkeypatch):
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    monkeypatch.setattr(bars, "err", lambda: console)
    with bars.Bars() as progress:
        progress.start("encode [train]", total=10, unit="tokens")
        progress.advance(4)
        progress.note(epoch=3, dev_accuracy=0.91234, stage="[x]")
        progress.say("no [dev] file")
        progress.advance(6)
        progress.done()
        progress.start("train", total=2, unit="steps")
    shown = screen.getvalue()
    assert "encode [train]" in shown
    assert "10/10" in shown
    assert "tokens/s" in shown
    assert "epoch 3, dev accuracy 0.9123, stage [x]" in shown
    assert "no [dev] file" in shown


def test_every_hint_is_for_a_code_that_servers_give():
    assert errors.HINTS.keys() <= CODES.keys()
