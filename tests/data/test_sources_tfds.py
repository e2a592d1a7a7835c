"""A data set that TensorFlow Datasets itself wrote as ArrayRecord is read by its name, without TensorFlow."""

import importlib.resources
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from jaxlm.data.config import DataConfig, DataError
from jaxlm.data.prepare import prepare
from jaxlm.data.sources import Corrupt, Document, find_sources, read

SPLITS = {
    "en": {"train": 60, "validation": 3, "test": 3},
    "multilingual": {"de": 5, "de-validation": 2, "zh-Latn": 4, "zh-Latn-validation": 1},
    "plain": {"train": 40},
    "odd": {"train": 3, "unsupervised": 3},
    "pictures": {"train": 1},
}


def text(split: str, number: int) -> str:
    return f"{split} {number} caf\u00e9 \u2581 \x00\x00"


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which TFDS has prepared `tiny_text`; those of `en` have three shards each."""
    with pytest.MonkeyPatch.context() as patch:
        # tensorflow-datasets imports it to find a builder's code, but does not require it.
        patch.setitem(sys.modules, "importlib_resources", importlib.resources)
        import tensorflow_datasets as tfds

        class TinyText(tfds.core.GeneratorBasedBuilder):
            VERSION = tfds.core.Version("1.0.0")
            BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in SPLITS]  # noqa: RUF012

            def _config_name(self) -> str:
                assert self.builder_config is not None
                return self.builder_config.name

            def _info(self):
                field = "caption" if self._config_name() == "pictures" else "text"
                features = {field: tfds.features.Text(), "url": tfds.features.Text()}
                return tfds.core.DatasetInfo(
                    builder=self, disable_shuffling=True, features=tfds.features.FeaturesDict(features)
                )

            def _split_generators(self, dl_manager):
                splits = SPLITS[self._config_name()]
                return {split: self._generate_examples(split, count) for split, count in splits.items()}

            def _generate_examples(self, split, count):
                field = "caption" if self._config_name() == "pictures" else "text"
                for number in range(count):
                    yield number, {field: text(split, number), "url": f"https://a.example/{split}/{number}"}

        folder = tmp_path_factory.mktemp("tfds")
        for name in SPLITS:
            shards = tfds.download.DownloadConfig(num_shards=3 if name == "en" else 1)
            builder = TinyText(data_dir=folder, config=name)
            builder.download_and_prepare(file_format="array_record", download_config=shards)
        return folder


@pytest.fixture
def data_dir(written: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TFDS_DATA_DIR", str(written))
    return written


@pytest.fixture
def copy(data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The version folder of tiny_text/plain in a data folder of its own, to be damaged."""
    target = tmp_path / "mine" / "tiny_text" / "plain" / "1.0.0"
    target.mkdir(parents=True)
    for file in (data_dir / "tiny_text" / "plain" / "1.0.0").iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "mine"))
    return target


def items(path: str, validation_fraction: float = 0.0, validation: str | None = None) -> Iterator[Document | Corrupt]:
    config = DataConfig(path=path, validation=validation, validation_fraction=validation_fraction)
    for source in find_sources(config)[0]:
        yield from read(source, validation_fraction)


def sides(path: str, validation_fraction: float = 0.0, validation: str | None = None) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for item in items(path, validation_fraction, validation):
        assert isinstance(item, Document)
        found.setdefault(item.split, set()).add(item.text)
    return found


def of(*splits: str, config: str) -> set[str]:
    return {text(split, number) for split in splits for number in range(SPLITS[config][split])}


@pytest.mark.usefixtures("data_dir")
@pytest.mark.parametrize("spec", ["tfds:tiny_text/en", "tfds:tiny_text/en:1.0.0"])
def test_a_data_set_is_read_by_name_with_its_own_splits(spec: str):
    sources, _ = find_sources(DataConfig(path=spec, validation_fraction=0.3))
    assert sorted(source.name.partition("-")[2] for source in sources if source.split == "train") == [
        f"train.array_record-0000{number}-of-00003" for number in range(3)
    ]
    wanted = {
        "train": of("train", config="en"),
        "valid": of("validation", config="en"),
        "test": of("test", config="en"),
    }
    assert sides(spec, validation_fraction=0.3) == wanted


def test_the_folder_of_a_version_is_read_like_its_name(data_dir: Path):
    folder = data_dir / "tiny_text" / "en" / "1.0.0"
    assert sides(str(folder)) == sides("tfds:tiny_text/en")


@pytest.mark.usefixtures("data_dir")
def test_a_data_set_that_holds_nothing_out_is_split_by_url():
    found = sides("tfds:tiny_text/plain", validation_fraction=0.2)
    assert found["train"] | found["valid"] == of("train", config="plain")
    assert 1 < len(found["valid"]) < 20


@pytest.mark.usefixtures("data_dir")
def test_languages_are_chosen_by_name_with_their_held_out_parts():
    config = "multilingual"
    both = {
        "train": of("de", "zh-Latn", config=config),
        "valid": of("de-validation", "zh-Latn-validation", config=config),
    }
    assert sides("tfds:tiny_text/multilingual") == both
    assert sides("tfds:tiny_text/multilingual[de, zh-Latn]") == both
    one = {"train": of("zh-Latn", config=config), "valid": of("zh-Latn-validation", config=config)}
    assert sides("tfds:tiny_text/multilingual[zh-Latn]") == one
    with pytest.raises(DataError, match=r"there is no split en; there are de, de-validation, zh-Latn"):
        sides("tfds:tiny_text/multilingual[de,en]")


@pytest.mark.usefixtures("data_dir")
def test_held_out_text_of_one_data_set_serves_another():
    found = sides("tfds:tiny_text/plain", validation="tfds:tiny_text/en[validation]")
    assert found == {"train": of("train", config="plain"), "valid": of("validation", config="en")}


@pytest.mark.usefixtures("data_dir")
def test_a_split_of_unknown_use_is_not_guessed():
    with pytest.raises(DataError, match=r"not clear from their names \(unsupervised of train, unsupervised\): choose"):
        sides("tfds:tiny_text/odd")
    assert sides("tfds:tiny_text/odd[unsupervised]") == {"train": of("unsupervised", config="odd")}


@pytest.mark.usefixtures("data_dir")
def test_what_is_not_there_is_said_with_the_command_that_prepares_it(data_dir: Path):
    looked_for = rf"data\.path=tfds:lm1b was looked for in {data_dir}/lm1b and is not there"
    with pytest.raises(
        DataError, match=rf"{looked_for}.*tfds build lm1b --file_format=array_record --data_dir={data_dir}"
    ):
        sides("tfds:lm1b")
    with pytest.raises(DataError, match=r"tfds build c4/en .*data\.path=hf://datasets/allenai/c4/en, or a downloaded"):
        sides("tfds:c4/en")
    with pytest.raises(
        DataError, match=r"has no c4/en\.noblocklist, only en, .*hf://datasets/allenai/c4/en\.noblocklist"
    ):
        sides("tfds:c4/en.noblocklist")
    with pytest.raises(DataError, match=r"1\.0\.0 has no version 2\.0\.0|has no version 2\.0\.0; it has 1\.0\.0"):
        sides("tfds:tiny_text/en:2.0.0")
    with pytest.raises(DataError, match=r"choose one of its configurations: en, multilingual, odd, pictures, plain"):
        sides("tfds:tiny_text")
    with pytest.raises(DataError, match=r"has no field `text`; it has caption, url"):
        sides("tfds:tiny_text/pictures")
    with pytest.raises(DataError, match=r"data\.path=tfds:c4/en\[de is not of the form tfds:NAME"):
        sides("tfds:c4/en[de")


def test_a_data_folder_behind_a_url_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket/tfds")
    with pytest.raises(DataError, match=r"TFDS_DATA_DIR=gs://bucket/tfds must be a local or mounted folder"):
        sides("tfds:lm1b")


def test_a_set_of_tfrecords_is_told_how_to_be_converted(copy: Path):
    info = json.loads((copy / "dataset_info.json").read_text())
    (copy / "dataset_info.json").write_text(json.dumps(info | {"fileFormat": "tfrecord"}))
    convert = rf"as tfrecord, .*tfds convert_format --dataset_version_dir={copy} --out_file_format=array_record"
    with pytest.raises(DataError, match=convert):
        sides("tfds:tiny_text/plain")
    converted = info | {
        "fileFormat": "tfrecord",
        "alternativeFileFormats": ["array_record"],
    }  # as convert_format leaves it
    (copy / "dataset_info.json").write_text(json.dumps(converted))
    assert sides("tfds:tiny_text/plain") == {"train": of("train", config="plain")}


def test_a_damaged_record_is_corrupt_by_shard_and_number(copy: Path):
    shard = copy / "tiny_text-train.array_record-00000-of-00001"
    content = bytearray(shard.read_bytes())
    content[content.find(b"train 7 ")] ^= 1
    shard.write_bytes(content)
    found = list(items("tfds:tiny_text/plain"))
    (bad,) = [item for item in found if isinstance(item, Corrupt)]
    assert found.index(bad) == 7
    assert bad.where == f"{shard}:8"
    assert "hash mismatch" in bad.why
    assert len(found) == 40


def test_an_incomplete_data_set_is_named(copy: Path):
    shard = copy / "tiny_text-train.array_record-00000-of-00001"
    content = shard.read_bytes()
    shard.write_bytes(content[:100_000])
    with pytest.raises(DataError, match="00000-of-00001 is not a readable ArrayRecord file: "):
        sides("tfds:tiny_text/plain")
    shard.write_bytes(content)
    info = json.loads((copy / "dataset_info.json").read_text())
    info["splits"][0]["shardLengths"] = ["41"]
    (copy / "dataset_info.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match=r"holds 40 records where dataset_info\.json says 41"):
        sides("tfds:tiny_text/plain")
    shard.unlink()
    with pytest.raises(DataError, match=r"is incomplete: .*00000-of-00001 cannot be read: No such file"):
        sides("tfds:tiny_text/plain")


def test_prepared_tokens_follow_the_data(copy: Path, config: DataConfig):
    config = replace(config, path="tfds:tiny_text/plain", minimum_characters=1)
    corpus = prepare(config)
    assert sum(corpus.report.documents.values()) == 40
    assert prepare(config).folder == corpus.folder
    shard = copy / "tiny_text-train.array_record-00000-of-00001"
    shard.write_bytes(shard.read_bytes())  # written anew
    assert prepare(config).folder != corpus.folder


def test_reading_imports_no_tensorflow(data_dir: Path):
    code = (
        "import sys\n"
        "from jaxlm.data.config import DataConfig; from jaxlm.data.sources import find_sources, read\n"
        "sources, _ = find_sources(DataConfig(path='tfds:tiny_text/en'))\n"
        "print(sum(1 for source in sources for _ in read(source, 0.0)))\n"
        "sys.exit(', '.join({'tensorflow', 'jax'} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "66"), done.stderr
