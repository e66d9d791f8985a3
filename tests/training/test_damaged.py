"""Whatever has become of a run's files, reading them ends in one line that says which one."""

import itertools
import json
import shutil
from dataclasses import asdict

import pytest

from jaxrec import files
from jaxrec.data.synthetic import synthetic
from jaxrec.report.comparison import compare
from jaxrec.report.overview import read_comparable
from jaxrec.training import checkpoint
from jaxrec.training.opening import job_of, reopen
from jaxrec.training.prepared import prepare
from jaxrec.training.run import train
from jaxrec.training.run_folder import progress_of, read_record, read_result, rows_until
from jaxrec.training.settings import build, read_settings, read_values
from jaxrec.types import REFUSALS, CheckpointError, SettingError

DEEP = "[" * 50_000 + "]" * 50_000
FEW = [None, "null", '"7"', "[]"]  # None: the part is gone
MUTATIONS = [*FEW, "{}", "true", "-1", "2.5", "NaN", "1e999", '["x"]', DEEP]
JSON = ["config.json", "result.json", "checkpoint/index.json"]


@pytest.fixture(scope="module")
def dataset():
    return synthetic(users=30, items=20, clients=3, length=10)


@pytest.fixture(scope="module")
def ended(dataset, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "run"
    train("popularity", dataset, out=out, baselines=(), progress=False)
    return out


@pytest.fixture(scope="module")
def read(ended, dataset):
    """Reads all that a folder of the run holds, as the commands do."""
    run, config = read_settings("popularity", None, {"baselines": (), "data": dataset.name})
    job = job_of("popularity", run, config, prepare(run, dataset), ended, progress=False)

    def read(folder, name):
        if name not in ("checkpoint/index.json", "metrics.jsonl"):
            record = read_record(folder)
            build(record["method"], read_values(record["method"], record["settings"]))
            compare([folder], resamples=1)
            read_comparable([folder])
        elif reached := progress_of(job._replace(out=folder)):
            rows_until(folder, reached)
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(
                    checkpoint, "_read", lambda path, target: {}
                )  # as it has its checksum
                checkpoint.restore_arrays(folder / "checkpoint", "best", job.like)

    return read


@pytest.fixture
def copied(ended, tmp_path):
    return shutil.copytree(ended, tmp_path / "run")


def places(value, path=()):
    """The paths to every part of a value of JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for key, one in inner:
        yield (*path, key)
        if isinstance(one, dict | list) and one:
            yield from places(one, (*path, key))


def mutated(text, path, new):
    """The file's text with `new` in place of one part, or without it."""
    value = json.loads(text)
    *way, last = path
    part = value
    for key in way:
        part = part[key]
    if new is None:
        del part[last]
        return json.dumps(value)
    part[last] = mark = "the place of the mutation"
    return json.dumps(value).replace(f'"{mark}"', new)


def assert_told(read, folder, name, case):
    """Reading succeeds, or ends in one line."""
    try:
        read(folder, name)
    except REFUSALS as error:
        assert "\n" not in str(error) and len(str(error)) < 2000, case
        return str(error)
    except Exception as error:
        pytest.fail(f"{case}: {error!r:.300}")


@pytest.mark.parametrize(
    ("name", "mutations", "summed"),
    [
        ("config.json", MUTATIONS, True),
        ("checkpoint/index.json", MUTATIONS, True),
        ("result.json", FEW[:1], True),
        ("result.json", FEW, False),
    ],
)
def test_any_part_of_any_file_may_be_of_any_type(copied, read, name, mutations, summed):
    if not summed:  # as an older version left it
        record = json.loads((copied / "config.json").read_text())
        del record["checksums"]
        files.write_json(copied / "config.json", record)
        (copied / "result.sha256").unlink()
    read(copied, name)
    text = (copied / name).read_text()
    for path, new in itertools.product(places(json.loads(text)), mutations):
        (copied / name).write_text(mutated(text, path, new))
        told = assert_told(read, copied, name, (path, new and new[:20]))
        if name == "result.json" and summed:
            assert told and "result.json: damaged" in told


@pytest.mark.parametrize("name", [*JSON, "metrics.jsonl", "result.sha256", "users.parquet"])
def test_a_file_may_be_cut_anywhere_or_hold_anything(copied, read, name):
    content = (copied / name).read_bytes()
    cuts = [content[: len(content) * n // 7] for n in range(7)]
    others = [
        b"NaN",
        b"null",
        b"[]",
        b"3",
        DEEP.encode(),
        b'{"a": ' * 9999,
        b"\xff\xfe\x00",
        b"\x00" * 99,
    ]
    for bad in [*cuts, *others, content.replace(b"0", b"\xb2", 1), b"1" * 9999]:
        (copied / name).write_bytes(bad)
        told = assert_told(read, copied, name, bad[:20])
        assert told or name == "metrics.jsonl"
    (copied / name).unlink()
    told = assert_told(read, copied, name, "absent")
    assert told or name == "checkpoint/index.json"  # a run of one evaluation may have saved nothing


@pytest.mark.parametrize("name", ["result.json", "users.parquet"])
def test_a_result_has_the_checksum_that_it_was_written_with(copied, name):
    values, users = read_result(copied)
    assert values["rounds"] == 1 and len(users) == 30
    content = (copied / name).read_bytes()
    assert b"0" in content
    (copied / name).write_bytes(content.replace(b"0", b"1", 1))
    with pytest.raises(CheckpointError, match=f"{name}: damaged, .*checksum in result.sha256"):
        read_result(copied)
    (copied / name).write_bytes(content)
    read_result(copied)
    (copied / "result.sha256").unlink()
    with pytest.raises(CheckpointError, match=r"result.sha256: missing.*continue with"):
        read_result(copied)


@pytest.mark.parametrize(
    "lengths", [[], [64, 8], [0, 8], [8, 8], [8.0], [2**40], 8, None, "8"], ids=str
)
def test_lengths_that_cannot_be_are_refused(lengths, copied):
    record = json.loads((copied / "config.json").read_text())
    record["data"]["lengths"] = lengths
    files.write_json(copied / "config.json", record)
    with pytest.raises(CheckpointError, match=r"config.json: damaged \(lengths = "):
        read_record(copied)


def test_a_damaged_result_is_made_again(copied, dataset):
    (copied / "result.json").write_text("{}")
    assert reopen(copied, dataset, progress=False).values == {}
    again = train(resume=copied, data=dataset, progress=False)
    assert read_result(copied)[0] == again.values


@pytest.mark.parametrize(
    ("sums", "message"),
    [
        ("{}", "has no checksums"), ("null", "has no checksums"), (None, "has no checksums"),
        ('{"x": "y"}', "missing or damaged|has no checksum in index.json"),
        ("FIRST", "has no checksum in index.json"),
    ],
)  # fmt: skip
def test_a_checkpoint_without_its_checksums_is_refused(copied, read, sums, message):
    path = copied / "checkpoint" / "index.json"
    index = json.loads(path.read_text())
    if sums == "FIRST":
        own = index["saved"][index["best"]]["sha256"]
        del own[min(own)]
        path.write_text(json.dumps(index))
    else:
        path.write_text(mutated(path.read_text(), ("saved", index["best"], "sha256"), sums))
    with pytest.raises(CheckpointError, match=message):
        read(copied, "checkpoint/index.json")


def test_a_number_of_any_size_is_refused_by_name():
    huge = 10**400
    with pytest.raises(SettingError, match="valid = 1000000000"):
        read_values("popularity", {"valid": huge})
    assert read_values("popularity", {"seed": huge}) == {"seed": huge}
    assert asdict(read_settings("popularity")[0])["seed"] == 0
