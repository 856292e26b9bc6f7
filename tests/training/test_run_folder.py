"""Where a run is kept: nothing of anybody else's is lost, and what is damaged is named."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from labelmux_training.errors import RunFolderError
from labelmux_training.run_folder import Checkpoint, RunFolder


def test_the_folder_goes_when_its_run_is_over(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "spam.run", "a")
    kept.save(best=1)
    assert Checkpoint(tmp_path / "spam.run", "a").saved() == {"run": "a", "best": 1}
    kept.remove()
    assert list(tmp_path.iterdir()) == []
    kept.remove()


def test_a_file_put_into_the_folder_of_a_run_outlives_it(tmp_path: Path) -> None:
    kept = Checkpoint(tmp_path / "spam.run", "a")
    kept.save(best=1)
    (tmp_path / "spam.run" / "my.csv").write_text("precious")
    kept.remove()
    assert [path.name for path in (tmp_path / "spam.run").iterdir()] == ["my.csv"]


def test_a_folder_with_anything_but_a_run_is_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "spam.run"
    folder.mkdir()
    (folder / "my.csv").write_text("precious")
    with pytest.raises(RunFolderError, match=r"spam\.run/my\.csv: no file of a run"):
        Checkpoint(folder, "a")
    (folder / "my.csv").rename(tmp_path / "my.csv")
    torch.save({"weights": torch.zeros(2)}, folder / "checkpoint.pt")
    with pytest.raises(RunFolderError, match=r"checkpoint\.pt: no checkpoint of a run"):
        Checkpoint(folder, "a")


def test_a_file_in_place_of_the_folder_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "spam.run").write_text("precious")
    with pytest.raises(RunFolderError, match=r"spam\.run: no folder"):
        Checkpoint(tmp_path / "spam.run", "a")
    (tmp_path / "gone.run").symlink_to(tmp_path / "nowhere")
    with pytest.raises(RunFolderError, match=r"gone\.run: no folder"):
        Checkpoint(tmp_path / "gone.run", "a")


@pytest.mark.parametrize("length", (0, 1000))
def test_a_truncated_checkpoint_is_named(tmp_path: Path, length: int) -> None:
    folder = tmp_path / "spam.run"
    RunFolder(folder).save(run="a", weights=torch.zeros(2000))
    whole = (folder / "checkpoint.pt").read_bytes()
    assert len(whole) > length
    (folder / "checkpoint.pt").write_bytes(whole[:length])
    with pytest.raises(RunFolderError, match=r"checkpoint\.pt: .*damaged; delete it") as refused:
        Checkpoint(folder, "a")
    assert "encoder" not in str(refused.value)
