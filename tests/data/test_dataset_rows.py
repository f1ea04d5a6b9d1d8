"""Objects of `datasets`, what it saved, and data sets of the Hub."""

import datasets
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from datasets.exceptions import DatasetNotFoundError

from peftkit.data.row_files import read_rows
from peftkit.errors import DataError

ROWS = [{"text": "a", "n": 1}, {"text": "b", "n": None}]
DATA = Dataset.from_list(ROWS)
OTHER = Dataset.from_list([{"text": "c", "n": 2}])


def test_objects_are_read_where_a_path_is():
    assert read_rows(DATA) == ROWS
    assert read_rows(DATA.select([1])) == ROWS[1:]
    assert read_rows(DATA.with_format("numpy")) == ROWS
    assert read_rows(DatasetDict(train=DATA)) == ROWS
    assert read_rows([DATA, OTHER, [{"text": "d"}]]) == [
        *ROWS,
        {"text": "c", "n": 2},
        {"text": "d"},
    ]
    assert read_rows(ROWS) == ROWS
    assert read_rows(DATA).where(1) == "the data set, row 2"


def test_another_content_has_another_digest():
    assert read_rows(DATA).digest == read_rows(DATA).digest
    assert read_rows(DATA).digest != read_rows(OTHER).digest
    assert read_rows(DATA).digest != read_rows(DATA.select([1, 0])).digest


def test_classes_have_names_and_pictures_are_not_decoded():
    features = Features({"image": Image(), "label": ClassLabel(names=["cat", "dog"])})
    data = Dataset.from_dict({"image": [{"path": "x.png"}], "label": [1]}, features=features)
    assert read_rows(data) == [{"image": {"path": "x.png"}, "label": "dog"}]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (DatasetDict(train=DATA, test=DATA), r"splits train and test: name one, .*data\['train'\]"),
        (DATA.to_iterable_dataset(), "IterableDataset, which can only be read forward"),
        (Dataset.from_list([]), "holds no rows"),
        (None, "cannot be read from a NoneType"),
        ({"text": "a"}, "cannot be read from a dict"),
        (iter(ROWS), "cannot be read from a list_iterator"),
        ([ROWS, 7], "cannot be read from a int"),
    ],
)
def test_what_has_no_rows_is_named(source, message):
    with pytest.raises(DataError, match=message):
        read_rows(source)


def test_saved_data_sets_are_read(tmp_path, capsys):
    DATA.save_to_disk(tmp_path / "one")
    assert read_rows(tmp_path / "one") == ROWS
    assert read_rows(tmp_path / "one").where(0) == f"{tmp_path / 'one'}, row 1"
    DatasetDict(train=DATA, validation=OTHER).save_to_disk(tmp_path / "two")
    assert read_rows(f"{tmp_path}/two:train") == ROWS
    assert read_rows(f"{tmp_path}/two:validation") == list(OTHER)
    assert read_rows(f"{tmp_path}/two:dev") == list(OTHER)
    assert read_rows(f"{tmp_path}/two:train").digest == read_rows(tmp_path / "one").digest
    with pytest.raises(DataError, match=r"train and validation: name one, such as .*/two:train"):
        read_rows(tmp_path / "two")
    with pytest.raises(DataError, match="none called 'test'"):
        read_rows(f"{tmp_path}/two:test")
    (tmp_path / "one" / "dataset_info.json").write_text("{")
    with pytest.raises(DataError, match=r"cannot read .*/one"):
        read_rows(tmp_path / "one")


@pytest.mark.parametrize(
    ("source", "given"),
    [
        ("hub:owner/name", {}),
        ("hub:owner/name:train", {"split": "train"}),
        ("hub:owner/name/config:test", {"name": "config", "split": "test"}),
        ("hub:owner/name@abc123:train[:10%]", {"revision": "abc123", "split": "train[:10%]"}),
        ("hub:owner/name/en@main", {"name": "en", "revision": "main"}),
    ],
)
def test_a_name_of_the_hub_says_config_revision_and_split(monkeypatch, source, given):
    asked = {}

    def load_dataset(path, **arguments):
        asked.update(arguments, path=path)
        return DATA if arguments["split"] else DatasetDict(train=DATA)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    rows = read_rows(source)
    assert rows == ROWS
    assert rows.where(0) == f"{source}, row 1"
    nothing = {"name": None, "revision": None, "split": None}
    assert asked == {"path": "owner/name"} | nothing | given


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (DatasetNotFoundError("Dataset 'a/b' doesn't exist on the Hub."), "check its name"),
        (DatasetNotFoundError("Dataset 'a/b' is a gated dataset."), "ask for access"),
        (ConnectionError("Couldn't reach 'a/b' on the Hub"), "the first time, a network is needed"),
        (ValueError('Unknown split "x". Should be one of ["train"].'), 'Unknown split "x"'),
        (RuntimeError("Dataset scripts are no longer supported"), "scripts are no longer"),
    ],
)
def test_what_goes_wrong_with_the_hub_is_one_sentence(monkeypatch, problem, message):
    def load_dataset(path, **arguments):
        raise problem

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match=message) as raised:
        read_rows("hub:a/b:x")
    assert str(raised.value).startswith("cannot read hub:a/b:x: ")
    assert "\n" not in str(raised.value)


def test_several_splits_of_the_hub_must_be_told_apart(monkeypatch):
    both = DatasetDict(test=DATA, train=DATA)
    monkeypatch.setattr(datasets, "load_dataset", lambda path, **arguments: both)
    with pytest.raises(DataError, match="test and train: name one, such as hub:a/b:train"):
        read_rows("hub:a/b")


@pytest.mark.parametrize("source", ["hub:", "hub:name", "hub:a/b:", "hub:/b", "hub:a/b/c/d:"])
def test_what_is_no_name_of_the_hub_is_shown_how_to_write_it(source):
    with pytest.raises(DataError, match="write hub:OWNER/NAME"):
        read_rows(source)


def test_a_name_that_looks_like_one_of_the_hub_is_told_the_prefix():
    with pytest.raises(DataError, match=r"no data file at owner/name; .*write hub:owner/name$"):
        read_rows("owner/name")


def test_types_that_a_feature_may_have_are_read():
    features = Features({"day": Value("date32"), "x": Value("large_string"), "b": Value("bool")})
    data = Dataset.from_dict({"day": [None], "x": ["a"], "b": [True]}, features=features)
    assert read_rows(data) == [{"day": None, "x": "a", "b": True}]
