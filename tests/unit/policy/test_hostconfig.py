"""The host's configuration: each mistake with the message that users get."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jsonschema
import pytest

from agentrun.base.errors import ConfigError
from agentrun.base.paths import Paths
from agentrun.decision import inforce
from agentrun.oci import backend
from agentrun.policy import hostconfig

TREE = Path(__file__).parents[3]
GOOD = 'version = 1\nbackends = ["/bin/true"]\n'


@pytest.fixture
def paths(tmp_path) -> Paths:
    (tmp_path / "etc/agentrun").mkdir(parents=True)
    (tmp_path / "var/log").mkdir(parents=True)
    return Paths(str(tmp_path))


def write(paths: Paths, text: str) -> None:
    with open(paths.config, "w") as file:
        file.write(text)


MISTAKES = {
    "": "version = None: expected 1",
    "version = 2": "version = 2: expected 1",
    GOOD + "backend = 1": "unknown key 'backend', did you mean 'backends'?",
    GOOD + "zzz = 1": "unknown key 'zzz', known keys: version, backends, mode, fail, enforcement, oom_hold,",
    GOOD + "parking = 1": "parking = 1: expected true or false",
    GOOD + 'oom_hold = "50"': 'oom_hold = \'50\': expected a duration from "1ms" to "1s", or "none"',
    GOOD + 'oom_hold = "2s"': "oom_hold = '2s': expected a duration",
    GOOD + "oom_hold = 50": "oom_hold = 50: expected a duration",
    GOOD + "[calls]\npids = 1": "unknown key 'calls.pids', did you mean 'pids_max'?",
    GOOD + 'mode = "on"': "mode = 'on': expected one of enforce, observe, off",
    GOOD + 'fail = "maybe"': "fail = 'maybe': expected one of open, closed",
    GOOD + "mode = 3": "mode = 3: expected one of enforce, observe, off",
    GOOD + "calls = 3": "calls = 3: expected a table",
    GOOD + "[calls]\npids_max = 4": "calls.pids_max = 4: expected a number from 16 to 4194304",
    GOOD + "[calls]\npids_max = true": "calls.pids_max = True: expected a number",
    GOOD + "[calls]\nmemory_max = 5": "calls.memory_max = 5: expected a share",
    GOOD + '[calls]\nmemory_max = "150%"': "calls.memory_max = '150%': expected a share",
    GOOD + '[calls]\nmemory_max = "1g"': "calls.memory_max = '1g': expected a share",
    GOOD + "records = 3": "records = 3: expected a table",
    GOOD + "[records]\nkeep_day = 1": "unknown key 'records.keep_day', did you mean 'keep_days'?",
    GOOD + "[records]\nkeep_days = 0": "records.keep_days = 0: expected a number from 1 to 1048576",
    GOOD
    + '[records]\nmax_mb = "1g"': "records.max_mb = '1g': expected a number from 1 to 1048576, or \"none\"",
    GOOD + "[records]\nmax_mb = true": "records.max_mb = True: expected a number",
    "version = 1\nbackends = []": "backends = []: expected a list of names or absolute paths",
    'version = 1\nbackends = "runc"': "backends = 'runc': expected a list",
    'version = 1\nbackends = ["no-such-runtime"]': "backends = ['no-such-runtime']: none is installed",
    'version = 1\nbackends = ["./runc"]': "backends = './runc': neither a plain name nor an absolute path",
    'version = 1\nbackends = ["/bin/a b"]': "white space is not supported",
    "version = ]": "Invalid value (at line 1, column 11)",
}


@pytest.mark.parametrize("text", MISTAKES, ids=range(len(MISTAKES)))
def test_mistake_is_named(paths, text):
    write(paths, text)
    with pytest.raises(ConfigError) as caught:
        hostconfig.compile_file(paths)
    assert MISTAKES[text] in str(caught.value)
    assert str(caught.value).startswith(f"{paths.config}:")


def test_all_mistakes_are_told_with_their_places(paths):
    write(paths, GOOD + 'mode = "on"\n\n[calls]\n  pids_max = 4\ncolour = 1\n')
    with pytest.raises(ConfigError) as caught:
        hostconfig.compile_file(paths)
    places = [line.removeprefix(paths.config).split(": ")[0] for line in str(caught.value).splitlines()]
    assert places == [":3:1", ":7:1", ":6:3"]


def test_tomli_reads_where_python_has_no_reader(paths, monkeypatch):
    """Python 3.10."""
    monkeypatch.setitem(sys.modules, "tomli", hostconfig._toml())
    monkeypatch.setitem(sys.modules, "tomllib", None)
    write(paths, GOOD)
    assert hostconfig.compile_file(paths).backends == [("runc", "/bin/true")]
    write(paths, "version = ]")
    with pytest.raises(ConfigError, match=r"config\.toml:1:11: not valid TOML"):
        hostconfig.compile_file(paths)


def test_missing_tomli_is_named_where_there_is_something_to_read(paths, monkeypatch):
    monkeypatch.setitem(sys.modules, "tomllib", None)
    monkeypatch.setitem(sys.modules, "tomli", None)
    monkeypatch.setattr("site.main", lambda: None)
    hostconfig.compile_file(paths)
    write(paths, GOOD)
    with pytest.raises(ConfigError, match="cannot be read without tomli"):
        hostconfig.compile_file(paths)


def test_published_schema_knows_every_key():
    schema = json.loads((TREE / "configs/config.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    assert tuple(schema["properties"]) == hostconfig._KEYS[""]
    for section in ("calls", "records"):
        assert tuple(schema["properties"][section]["properties"]) == hostconfig._KEYS[section]
    jsonschema.validate(hostconfig._toml().loads((TREE / "configs/config.toml").read_text()), schema)
    for wrong in ({"version": 2}, {"version": 1, "mode": "on"}, {"version": 1, "calls": {"pids_max": 1}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, schema)


def test_shipped_configuration_is_the_default(paths, tmp_path):
    text = (Path(__file__).parents[3] / "configs/config.toml").read_text()
    write(paths, text.replace('["runc", "crun"]', '["/bin/true"]'))
    compiled, default = hostconfig.compile_file(paths).to_json(), hostconfig.builtin().to_json()
    for data in (compiled, default):
        data.pop("backends"), data.pop("sources")
    assert compiled == default


def test_compiled_form_reads_back(paths):
    write(paths, GOOD + 'mode = "observe"\nfail = "closed"\n[calls]\nmemory_max = "50%"\npids_max = 100\n')
    loaded = inforce.load(paths)
    assert inforce.load(paths).to_json() == loaded.to_json()
    assert (loaded.mode, loaded.fail_closed) == ("observe", True)
    standard = loaded.policy["classes"]["standard"]
    assert standard == {"memory": {"max": [50.0, "session"]}, "pids": {"max": 100}}


def test_records_are_kept_as_told(paths):
    write(paths, GOOD)
    assert inforce.load(paths).records == {"keep_days": 30, "max_mb": 256}
    write(paths, GOOD + '[records]\nkeep_days = "none"\nmax_mb = 5\n')
    assert inforce.load(paths).records == inforce.load(paths).records == {"keep_days": None, "max_mb": 5}


def test_shell_front_gets_backends_and_fail_policy(paths):
    write(paths, GOOD + 'fail = "closed"\n')
    inforce.load(paths)
    with open(paths.backends) as file:
        assert file.read() == "fail closed\nrunc /bin/true\n"


def test_change_is_seen_and_a_mistake_keeps_the_last_good_one(paths):
    write(paths, GOOD + 'mode = "observe"\n')
    assert inforce.load(paths).mode == "observe"
    write(paths, GOOD + 'mode = "bserve"\n')
    kept = inforce.load(paths)
    assert kept.mode == "observe" and "mode = 'bserve'" in kept.problems[0]
    write(paths, GOOD)
    assert (inforce.load(paths).mode, inforce.load(paths).problems) == ("enforce", [])


POLICY = "version: 1\ndefault-class: small\nclasses:\n  small: {pids: {max: 64}}\n"


def test_policy_is_compiled_and_a_mistake_keeps_the_last_good_one(paths):
    write(paths, GOOD)
    folder = Path(paths.policy)
    folder.mkdir()
    (folder / "10-own.yaml").write_text(POLICY)
    first = inforce.load(paths).policy
    assert first["default_class"] == "small" and first["hash"] != "builtin"
    (folder / "20-more.yaml").write_text("version: 1\nclasses: {small: {pids: {max: lots}}}\n")
    kept = inforce.load(paths)
    assert kept.policy == first
    assert "20-more.yaml:2:31: classes.small.pids.max: 'lots'" in kept.problems[0]
    assert inforce.load(paths).problems == kept.problems  # not compiled again
    (folder / "20-more.yaml").write_text("version: 1\nclasses: {small: {pids: {max: 99}}}\n")
    fresh = inforce.load(paths)
    assert (fresh.policy["classes"]["small"]["pids"]["max"], fresh.problems) == (99, [])
    (folder / "20-more.yaml").unlink()
    assert inforce.load(paths).policy == first


def test_other_files_in_the_policy_directory_do_not_count(paths):
    write(paths, GOOD)
    Path(paths.policy).mkdir()
    for name in (".10-hidden.yaml", "10-old.yaml.bak", "README"):
        Path(paths.policy, name).write_text("not a policy")
    assert (inforce.load(paths).policy["hash"], inforce.load(paths).problems) == ("builtin", [])


def test_state_directory_that_cannot_be_written_only_costs_time(tmp_path):
    (tmp_path / "var/lib").mkdir(parents=True)
    (tmp_path / "var/lib/agentrun").write_text("a file")
    paths = Paths(str(tmp_path))
    assert inforce.load(paths).mode == "enforce"


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/usr/bin/runc", "runc"), ("/usr/bin/crun", "crun"), ("/opt/crun-vm", "crun"), ("/x/nvidia", "runc")],
)
def test_kind_of_a_backend_is_in_its_name(path, kind):
    assert backend.kind_of(path) == kind
