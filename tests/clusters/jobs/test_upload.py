"""What is uploaded with a job, against the packages that Ray makes: the list, the sizes, what is kept out."""

import os
import shutil
import zipfile
from pathlib import Path

import pytest
from ray._private import ray_constants
from ray._private.runtime_env.packaging import create_package
from tailsweep.clusters.jobs import upload
from tailsweep.clusters.jobs.upload import EXCLUDES, UploadError, upload_of

ROOT = Path(__file__).resolve().parents[3]
KEPT_OUT = (
    ".git/objects/pack/pack-1.pack", ".venv/bin/python", "venv/lib/torch.so", "env/pyvenv.cfg", ".env", ".netrc",
    "runs/demo/best/model.safetensors", "wandb/offline-run-1/run.wandb", "data/rows.csv", "models/minilm/config.json",
    "minilm/model.safetensors", "checkpoint.pt", "trainables/__pycache__/keys.cpython-311.pyc", ".mypy_cache/x.json",
    "tailsweep.egg-info/PKG-INFO", "build/lib/keys.py", "bench.json",
)  # fmt: skip


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of this repository, with the files that accumulate in a working folder."""
    folder = tmp_path_factory.mktemp("checkout") / "tailsweep"
    piled_up = shutil.ignore_patterns(
        ".git", ".venv", "venv", "runs", "wandb", "data", "build", "*cache*", "*.egg-info"
    )
    shutil.copytree(ROOT, folder, ignore=piled_up)
    for name in KEPT_OUT:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"0" * 1_000_000)
    (folder / "rows.csv").write_text("text,label\nA dose.,other\n")
    return folder


def packed(folder: Path, excludes: tuple[str, ...], package: Path) -> dict[str, int]:
    """The files of the package that Ray makes of a folder, with their sizes."""
    create_package(str(folder), package, True, excludes=[*ray_constants.get_runtime_env_default_excludes(), *excludes])
    with zipfile.ZipFile(package) as archive:
        return {entry.filename: entry.file_size for entry in archive.infolist() if not entry.is_dir()}


def test_a_plain_ray_job_submit_uploads_the_source_and_nothing_that_piles_up(checkout: Path, tmp_path: Path):
    """`ray job submit --working-dir .` knows of .gitignore and .rayignore only."""
    sizes = packed(checkout, (), tmp_path / "plain.zip")
    assert set(KEPT_OUT) & set(sizes) == set()
    assert {
        "orchestrator/cli/main.py",
        "orchestrator/sweeps/demo.yaml",
        "trainables/augmentation/synonyms.txt",
        "rows.csv",
    } <= set(sizes)
    assert sum(sizes.values()) < 5_000_000


def test_the_list_is_what_ray_packs(checkout: Path, tmp_path: Path):
    listed = upload_of(checkout)
    assert listed.sizes == packed(checkout, EXCLUDES, tmp_path / "package.zip")
    assert listed.num_bytes == sum(listed.sizes.values())


def test_what_sweeps_write_and_where_keys_lie_stays_out_of_any_folder(tmp_path: Path):
    for name in ("rows.csv", "sub/.env", "runs/demo/sweep.yaml", "wandb/run.wandb", ".netrc", "sub/runs/kept.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / ".gitignore").write_text("*.log\n")
    (tmp_path / "sub/.rayignore").write_text("*.bin\n")
    (tmp_path / "sub/big.bin").write_text("x")
    (tmp_path / "sub/a.log").write_text("x")
    assert sorted(upload_of(tmp_path).sizes) == [".gitignore", "rows.csv", "sub/.rayignore", "sub/runs/kept.csv"]


def test_gitignore_is_not_honoured_if_ray_is_configured_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ".gitignore").write_text("*.log\n")
    (tmp_path / "a.log").write_text("x")
    monkeypatch.setenv("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")
    assert "a.log" in upload_of(tmp_path).sizes


def test_too_much_is_refused_with_the_largest_files_and_the_fix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, size in (("small.csv", 10), ("large/a.bin", 3_000_000), ("large/b.bin", 2_000_000), ("c.bin", 1_000_000)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"0" * size)
    monkeypatch.setattr(upload, "MAX_BYTES", 6_000_010 + 4 * upload.ZIP_BYTES_PER_FILE)
    with pytest.raises(UploadError) as refused:
        upload_of(tmp_path)
    assert str(refused.value) == (
        f"{tmp_path} is too large to upload: 4 files, 6.0 MB; the largest: large/a.bin (3.0 MB), large/b.bin (2.0 MB), "
        "c.bin (1.0 MB); a job's working directory must stay below 6.0 MB: name what the job does not need in "
        ".rayignore (as in a .gitignore), and put data and models where the nodes reach them"
    )
    (tmp_path / ".rayignore").write_text("large/\n")
    assert upload_of(tmp_path).num_bytes == 1_000_017


def test_a_package_is_no_larger_than_was_reckoned(tmp_path: Path):
    """Files alone decide, and so many bytes for each: Ray does not compress."""
    folder = tmp_path / "folder"
    for number in range(300):
        (folder / f"a_folder_of_some_depth/{number:03d}").mkdir(parents=True)
        (folder / f"a_folder_of_some_depth/{number:03d}/rows.csv").write_bytes(os.urandom(100))
    packed(folder, EXCLUDES, tmp_path / "package.zip")
    reckoned = upload_of(folder)
    most = reckoned.num_bytes + upload.ZIP_BYTES_PER_FILE * len(reckoned.sizes)
    assert reckoned.num_bytes < (tmp_path / "package.zip").stat().st_size < most


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "rows.csv").write_text("x")
    (tmp_path / "private.pem").write_text("x")
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path).name != "private.pem")  # root may read anything
    with pytest.raises(UploadError, match=r"private.pem may not be read; name what .* in \.rayignore"):
        upload_of(tmp_path)


def test_holds_files_and_folders_by_the_paths_a_job_has_for_them(tmp_path: Path):
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows/train.csv").write_text("x")
    (tmp_path / "empty").mkdir()
    listed = upload_of(tmp_path)
    assert all(listed.holds(path) for path in ("rows/train.csv", "./rows/train.csv", "rows", "rows/", "."))
    assert not any(listed.holds(path) for path in ("rows/test.csv", "row", "empty", "../rows", "train.csv"))
