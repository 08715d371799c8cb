"""YAML text becomes plain values, or one line saying where it does not."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tailsweep.orchestrator.config.errors import SweepConfigError
from tailsweep.orchestrator.config.yaml_io import parse_number, parse_yaml, read_sweep_file, split_override, write_yaml

PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**62), 2**62)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text().filter(lambda k: "." not in k), inner, max_size=3)
    ),
    max_leaves=6,
)


@settings(suppress_health_check=[HealthCheck.too_slow])  # a busy machine is not its affair
@given(tree=st.dictionaries(st.sampled_from(["data", "name", "no", "1e-5", "~"]), PLAIN))
def test_what_is_written_reads_back_the_same(tree: dict[str, object]) -> None:
    assert parse_yaml(write_yaml(tree)) == tree


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5),
        ("1E5", 1e5),
        (".5", 0.5),
        ("-3", -3),
        ("010", 10),  # octal in YAML 1.1
        ("true", True),
        ("null", None),
        ("no", "no"),  # false in YAML 1.1
        ("on", "on"),
        ("12:30", "12:30"),  # 750 in YAML 1.1
        ("2026-11-22", "2026-11-22"),  # a date in YAML 1.1
        ("1e", "1e"),
        ("<<", "<<"),
        ("'1e-5'", "1e-5"),
    ],
)
def test_scalars_are_read_as_in_yaml_1_2(text: str, value: object) -> None:
    read = parse_yaml(text)
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: 2\na: 3", 'line 3, column 1: "a" is written twice'),
        ("a: {b: 1, b: 1}", 'line 1, column 11: "b" is written twice'),
        ("stage_one.epochs: 3", "has a dot"),
        ("1: x", "a field's name must be a word"),
        ("[1]: x", "a field's name must be a word"),
        ("a: [1, 2", "line 1, column 9"),
        ("a: b: c", "line 1, column 5"),
        ("a: \x07", "special characters are not allowed"),
        ("--- a\n--- b", "expected a single document"),
        ("a: .inf", ".inf is no finite number"),
        ("a: .nan", ".nan is no finite number"),
        ("a: 1e999", "1e999 is no finite number"),
        ("a: " + "9" * 5000, "is too large a number"),
        ("a: !!python/object:os.system x", "the tag tag:yaml.org,2002:python/object:os.system cannot be used here"),
        ("a: !!set {x}", "cannot be used here"),
        ("a: !!int abc", '"abc" is no int'),
        ("a: !!bool abc", '"abc" is no bool'),
        ("a: !!str [1]", "must be a single value"),
        ("a: !!seq {}", "must be a list"),
        ("a: !!map []", "must be a mapping"),
        ("&a [*a]", "recursive"),
        ("a: *nowhere", "undefined alias"),
        ("[" * 500, "nested too deeply"),
    ],
)
def test_text_without_plain_values_is_one_line_with_the_place(text: str, message: str) -> None:
    with pytest.raises(ValueError) as raised:
        parse_yaml(text)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_two_aliases_of_one_anchor_are_two_values() -> None:
    tree = parse_yaml("a: &x {y: 1}\nb: *x")
    tree["a"]["y"] = 2
    assert tree["b"] == {"y": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"- a\n- b", "holds a list"),
        (b"hello", "holds a single value"),
        (b"name: caf\xe9", "byte 9 is not UTF-8"),
    ],
)
def test_a_file_that_is_no_sweep_is_one_issue(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_bytes(content)
    with pytest.raises(SweepConfigError) as raised:
        read_sweep_file(path)
    assert len(raised.value.issues) == 1
    assert message in raised.value.issues[0]
    assert str(raised.value).startswith(f"{path}: 1 error\n")


def test_a_missing_file_a_folder_and_an_impossible_name_are_told_apart(tmp_path: Path) -> None:
    messages = []
    for path in (tmp_path / "none.yaml", tmp_path, tmp_path / "a\0b"):
        with pytest.raises(SweepConfigError) as raised:
            read_sweep_file(path)
        messages.append(raised.value.issues[0])
    assert messages[0] == "there is no such file"
    assert "folder" in messages[1]
    assert messages[2].startswith("cannot be read")


def test_a_byte_order_mark_is_no_part_of_the_first_field(tmp_path: Path) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_bytes(b"\xef\xbb\xbfname: x")
    assert read_sweep_file(path) == {"name": "x"}


def test_an_override_is_split_at_its_first_equals_sign() -> None:
    assert split_override("data.train=a=b=c.csv") == (("data", "train"), "a=b=c.csv")
    assert split_override("data.text_column=") == (("data", "text_column"), "")


@pytest.mark.parametrize("override", ["", "data.train", "=x", ".a=x", "a..b=x", "a.=x"])
def test_an_override_without_field_or_value_is_refused(override: str) -> None:
    with pytest.raises(ValueError, match=r"must be written as dotted\.field=value"):
        split_override(override)


def test_only_what_yaml_calls_a_number_is_one() -> None:
    assert parse_number("0.2") == 0.2
    assert parse_number("1e-1") == 0.1
    assert [parse_number(text) for text in ("", "rows.csv", "1_0", " 0.2", "0.2\n", "nan", "٣", "true")] == [None] * 8
