from __future__ import annotations

import tomllib

import pytest

from proxy.engines.base import EngineConfig
from proxy.engines.launch import ENFORCED, arguments, environment, overrides_of, toml

CONFIG = EngineConfig(
    codex_bin="/bin/codex",
    codex_home="/home",
    scratch_dir="/tmp",
    environment={"PATH": "/bin", "CODEX_HOME": "/elsewhere"},
    overrides=("mcp_servers={evil={command='x'}}",),
)


@pytest.mark.parametrize(
    "value",
    [
        "plain",
        'quotes " and \\ and \n and \t',
        "controls \x00 \x1f \x7f \x80",
        "\u2028 ü \U0001f600",
        True,
        False,
        7,
        ["a", 1, ["b"]],
        {"/a.b/ü \x7f": {"trust_level": "untrusted"}},
        {},
    ],
)
def test_a_value_reads_back_as_toml(value: object):
    assert tomllib.loads(f"value = {toml(value)}")["value"] == value


def test_overrides_are_key_and_toml_value():
    config = {"features.x": False, "tools.y": {"enabled": True}}
    assert overrides_of(config) == ["features.x=false", 'tools.y={"enabled" = true}']


def test_what_we_enforce_comes_after_what_the_operator_set():
    argv = arguments(CONFIG, "exec", "--json", overrides=["a=1"])
    assert argv[:3] == ["/bin/codex", "exec", "--json"]
    given = [argv[i + 1] for i, part in enumerate(argv) if part == "-c"]
    assert given == [*CONFIG.overrides, "a=1", *ENFORCED]


def test_apps_and_plugins_are_off():
    argv = arguments(CONFIG, "app-server")
    assert {argv[i + 1] for i, part in enumerate(argv) if part == "--disable"} == {
        "apps",
        "plugins",
    }


def test_the_environment_is_the_listed_one_with_our_home():
    assert environment(CONFIG) == {"PATH": "/bin", "CODEX_HOME": "/home", "GIT_DIR": "/dev/null"}
