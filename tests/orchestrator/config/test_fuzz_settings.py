"""Sweep and comparison files of any content, and any `--set`: a checked sweep or one message, never a traceback."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from support.fuzzing import examples, fuzz, mangled
from tailsweep.orchestrator.comparison.config import ComparisonConfig, load_comparison
from tailsweep.orchestrator.config.distributions import KINDS
from tailsweep.orchestrator.config.errors import SweepConfigError
from tailsweep.orchestrator.config.sweep import SweepConfig, load_sweep, to_yaml
from tailsweep.orchestrator.config.yaml_io import parse_yaml, write_yaml
from tailsweep.trainables.config.base import Section
from tailsweep.trainables.config.data import DataConfig
from tailsweep.trainables.config.presets import METHODS
from tailsweep.trainables.config.trial import HeadConfig, ModelConfig, StageConfig

SWEEPS = Path(__file__).resolve().parents[3] / "orchestrator" / "sweeps"
VALID = [path.read_bytes() for path in sorted(SWEEPS.rglob("*.yaml"))]
PIECES = [
    b"{", b"}", b"[", b"]", b": ", b"- ", b"\n", b"\n  ", b"\t", b"#", b"&a ", b"*a", b"&a [*a]", b"<<: *a",
    b"!!binary x", b"!!python/name:os", b"'", b'"', b"|", b"? ", b"---\n", b"...", b"\x00", b"\xff",
    b"\xef\xbb\xbf", b"\xe2\x80\xa8",
    b"null", b"true", b".nan", b"-.inf", b"1e999", b"-1", b"0", b"1e-400", b"99999999999999999999", b"0x10",
    b"1" * 5000,
    b"{choice: [1, 2]}", b"{grid: []}", b"{loguniform: [1e-5, 1e-2]}", b"{randint: [3, 1]}", b"stage_one", b"[[[[[[",
]  # fmt: skip


def field_names(*sections: type[Section]) -> list[str]:
    return sorted({name for section in sections for name in section.model_fields})


NAMES = field_names(SweepConfig, ComparisonConfig, DataConfig, ModelConfig, HeadConfig, StageConfig)
WORDS = sorted(
    {*NAMES, *METHODS, *KINDS, "name", "kind", "ldam", "eda", "step", "all", "head", "auto", "optuna", "grid"}
)
LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from(WORDS)
    | st.text(max_size=8)
)
TREES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(WORDS) | st.text(max_size=4).filter(lambda key: "." not in key), inner, max_size=5
        )
    ),
    max_leaves=25,
)
SWEEP_TREES = st.fixed_dictionaries({"data": st.fixed_dictionaries({"train": st.just("x.csv")})}).flatmap(
    lambda tree: st.dictionaries(st.sampled_from(NAMES), TREES, max_size=6).map(lambda written: tree | written)
)


@st.composite
def replanted(draw: st.DrawFn) -> Any:
    """A valid file's tree, with some of its values replaced, dropped or put elsewhere."""
    tree = parse_yaml(draw(st.sampled_from(VALID)).decode())
    for _ in range(draw(st.integers(1, 4))):
        node = tree
        while True:
            key = draw(st.sampled_from(sorted(node)))
            if not isinstance(node[key], dict) or not node[key] or draw(st.integers(0, 3)) == 0:
                break
            node = node[key]
        action = draw(st.sampled_from(["replace", "drop", "add"]))
        if action == "drop" and len(node) > 1:
            del node[key]
        elif action == "add":
            node[draw(st.sampled_from(WORDS))] = draw(TREES)
        else:
            node[key] = draw(TREES)
    return tree


def accepts_or_says_why(path: Path, overrides: tuple[str, ...] = ()) -> None:
    for load in (load_sweep, load_comparison):
        try:
            loaded: Any = load(path, overrides)
        except SweepConfigError:
            continue
        if load is load_sweep:
            again = path.with_suffix(".again")
            again.write_text(to_yaml(loaded), encoding="utf-8")
            assert load_sweep(again).config == loaded.config


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "sweep.yaml"


STRATEGIES: dict[str, st.SearchStrategy[bytes]] = {
    "any bytes": st.binary(max_size=200),
    "any text": st.text(max_size=200).map(str.encode),
    "any tree": (TREES | SWEEP_TREES).map(lambda tree: write_yaml(tree).encode("utf-8", "surrogatepass")),
    "a sweep file, mangled": mangled(VALID, PIECES),
    "a sweep file, replanted": replanted().map(lambda tree: write_yaml(tree).encode("utf-8", "surrogatepass")),
}


@examples
@pytest.mark.parametrize("kind", STRATEGIES)
def test_any_file_is_a_sweep_or_one_message(kind: str, examples: int, file: Path) -> None:
    def check(content: bytes) -> None:
        file.write_bytes(content)
        accepts_or_says_why(file)

    fuzz(examples, STRATEGIES[kind], check)


@examples
def test_any_override_is_taken_or_refused_in_one_message(examples: int, file: Path) -> None:
    def check(overrides: list[str]) -> None:
        file.write_text("data: {train: x.csv}\n")
        accepts_or_says_why(file, tuple(overrides))

    fields = st.lists(st.sampled_from(WORDS), min_size=1, max_size=4).map(".".join)
    value = st.text(max_size=12) | st.sampled_from(PIECES).map(lambda piece: piece.decode("utf-8", "replace"))
    override = st.builds(lambda field, value: f"{field}={value}", fields, value) | st.text(max_size=20)
    fuzz(examples, st.lists(override, min_size=1, max_size=3), check)


NINE_TIMES = "\n".join(f"b{i}: &a{i + 1} [{', '.join([f'*a{i}'] * 9)}]" for i in range(40))
BILLION_LAUGHS = f"a: &a0 [x, x, x]\n{NINE_TIMES}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: " + "[" * 5000, "nested too deeply"),
        ("a: " + "[" * 25 + "]" * 25, "nested too deeply: in more than 20"),
        ("- " * 5000, "nested too deeply"),
        (BILLION_LAUGHS, "aliases"),
        ("a: &a [*a]", "recursive"),
        ("a: " + "x" * 1_000_001, "has 1,000,004 characters, but must have at most 1,000,000"),
        ("a: !!python/object/apply:os.system [id]", "the tag"),
    ],
)  # fmt: skip
@pytest.mark.timeout(20)
def test_what_would_take_memory_or_time_without_end_is_refused_at_once(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text(text)
    with pytest.raises(SweepConfigError, match=message):
        load_sweep(path)
