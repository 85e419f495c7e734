import pytest

from celery_exporter.runtime.yaml_tree import InvalidYamlError, Quoted, load_yaml


def test_scalars_are_texts_and_empty_keys_are_left_out():
    text = b"a: 123\nb: yes\nc:\nd: ~\ne: 'null'\nf: [1, x]\ng: {h: 2024-01-01}"
    expected = {"a": "123", "b": "yes", "e": "null", "f": ["1", "x"], "g": {"h": "2024-01-01"}}
    assert load_yaml(text) == expected
    assert load_yaml(b"# nothing") is None


def test_quotes_are_marked_if_they_matter():
    tree = load_yaml(b"a: 1\nb: '1'\nc: \"\"", marks_quotes=True)
    assert {key: isinstance(value, Quoted) for key, value in tree.items()} == {
        "a": False,
        "b": True,
        "c": True,
    }
    assert not any(isinstance(value, Quoted) for value in load_yaml(b"b: '1'").values())


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (b"a: hunter2\na: 2", "duplicate key in the mapping at line 1, column 1"),
        (b"a: {hunter2: 1, hunter2: 2}", "duplicate key in the mapping at line 1, column 4"),
        (b"a: [hunter2", "invalid YAML at line 1, column 12"),
        (b"a: \xff", "invalid YAML"),
        (b"a: *hunter2", "invalid YAML at line 1, column 4"),
        (b"[" * 10_000, "invalid YAML"),
    ],
)
def test_errors_have_a_place_and_none_of_the_text(text, error):
    with pytest.raises(InvalidYamlError) as raised:
        load_yaml(text)
    assert str(raised.value).startswith(error)
    assert "hunter2" not in str(raised.value)
