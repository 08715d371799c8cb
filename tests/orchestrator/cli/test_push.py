"""``tailsweep push``: what it uploads, and what it says where it cannot."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import transformers
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from tailsweep.orchestrator.cli.main import main
from tailsweep.trainables.config.trial import ModelConfig
from tailsweep.trainables.models.classifier import build_classifier, save_classifier


@pytest.fixture(scope="module")
def folder(tiny_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    source, folder = tiny_model("bert"), tmp_path_factory.mktemp("best")
    model = build_classifier(ModelConfig(name=str(source), head="native"), ("a", "b"), seed=0)
    save_classifier(model, transformers.AutoTokenizer.from_pretrained(source), folder, "native", ("a", "b"))
    return folder


def test_a_folder_is_uploaded_to_a_repository_that_is_created(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(HfApi, "create_repo", lambda self, repo, **given: asked.append((repo, given)))
    monkeypatch.setattr(
        HfApi, "upload_folder", lambda self, **given: asked.append(("upload", given)) or "https://hub.example/me/model"
    )
    capsys.readouterr()
    assert main(["push", str(folder), "me/model", "--private"]) == 0
    assert capsys.readouterr().out == "https://hub.example/me/model\n"
    (repo, created), (_, uploaded) = asked
    assert (repo, created) == ("me/model", {"private": True, "exist_ok": True})
    assert (uploaded["repo_id"], uploaded["folder_path"]) == ("me/model", str(folder))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (LocalTokenNotFoundError("no token"), "export HF_TOKEN"),
        (HFValidationError("bad name"), 'REPO is "me/model", but must be user/name'),
        (OSError("unreachable"), 'the hub does not take "me/model": unreachable'),
    ],
)
def test_what_the_hub_refuses_is_one_message(
    error: Exception, message: str, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(HfApi, "create_repo", refuse)
    assert main(["push", str(folder), "me/model"]) == 2
    assert message in capsys.readouterr().err


def test_a_folder_that_is_no_model_is_not_uploaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(HfApi, "create_repo", lambda *_, **__: pytest.fail("it was asked"))
    assert main(["push", str(tmp_path), "me/model"]) == 2
    assert "not a model folder" in capsys.readouterr().err
