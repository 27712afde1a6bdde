"""Settings come from the environment, also by their Ollama names; a bad value is an error that says what is allowed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from server.settings import Address, SettingError, Settings, parse_address, rows, warnings


def test_without_environment_everything_has_its_default() -> None:
    settings = Settings.from_environment({})
    assert settings.address == Address("127.0.0.1", 11434)
    assert settings.models == Path.home() / ".shale" / "models"
    assert settings.keep_alive_s == 300
    assert (settings.kernels, settings.num_parallel) == ("fast", 0)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("0.0.0.0:80", Address("0.0.0.0", 80)),
        (":8080", Address("127.0.0.1", 8080)),
        ("localhost", Address("localhost", 11434)),
        ("http://example.org:1/", Address("example.org", 1)),
        ("[::1]:5", Address("::1", 5)),
        ("::1", Address("::1", 11434)),
        ("127.0.0.1:0", Address("127.0.0.1", 0)),
    ],
)
def test_an_address_may_be_written_in_many_ways(text: str, address: Address) -> None:
    assert parse_address(text) == address


def test_the_url_of_an_address_can_be_called() -> None:
    assert Address("0.0.0.0", 1).url == "http://127.0.0.1:1"
    assert Address("::", 1).url == "http://[::1]:1"


@pytest.mark.parametrize(
    ("host", "is_loopback"), [("127.0.0.2", True), ("::1", True), ("0.0.0.0", False), ("a.b", False)]
)
def test_loopback_is_told_from_the_rest(host: str, is_loopback: bool) -> None:
    assert Address(host, 1).is_loopback is is_loopback


def test_the_ollama_name_is_accepted_and_the_own_name_wins() -> None:
    assert Settings.from_environment({"OLLAMA_HOST": "h:1"}).address == Address("h", 1)
    assert Settings.from_environment({"OLLAMA_HOST": "h:1", "SHALE_HOST": "h:2"}).address == Address("h", 2)


def test_names_without_an_ollama_twin_have_none() -> None:
    assert Settings.from_environment({"OLLAMA_KERNELS": "nonsense"}).kernels == "fast"


def test_quotes_and_blanks_around_a_value_do_not_count() -> None:
    assert Settings.from_environment({"SHALE_KERNELS": ' "reference" '}).kernels == "reference"


@pytest.mark.parametrize(("text", "seconds"), [("10", 10), ("5m", 300), ("1h30m", 5400), ("-1", math.inf), ("0", 0)])
def test_keep_alive_is_seconds_or_a_duration(text: str, seconds: float) -> None:
    assert Settings.from_environment({"SHALE_KEEP_ALIVE": text}).keep_alive_s == seconds


@pytest.mark.parametrize(("text", "number"), [("auto", 0), ("0", 0), ("3", 3), ("1024", 1024), ("", 0)])
def test_the_number_of_sequences_may_be_left_to_the_server(text: str, number: int) -> None:
    assert Settings.from_environment({"SHALE_NUM_PARALLEL": text}).num_parallel == number


@pytest.mark.parametrize(
    ("text", "types"), [("", "f16"), ("F32", "f32"), ("f32,f16", ("f32", "f16")), ("f32, f32", "f32")]
)
def test_the_type_of_the_cache_is_one_or_two(text: str, types: object) -> None:
    assert Settings.from_environment({"OLLAMA_KV_CACHE_TYPE": text}).kv_cache_type == types


@pytest.mark.parametrize(("text", "length"), [("0", 0), ("4", 4), ("8192", 8192)])
def test_a_context_is_the_default_or_long_enough(text: str, length: int) -> None:
    assert Settings.from_environment({"SHALE_CONTEXT_LENGTH": text}).context_length == length


@pytest.mark.parametrize("text", ["auto", "cpu", "sim:8GiB", "sim:8GiB, sim:1"])
def test_devices_stay_as_they_are_written(text: str) -> None:
    assert Settings.from_environment({"SHALE_DEVICES": text}).devices == text


@pytest.mark.parametrize(("text", "size"), [("0", 0), ("1073741824", 2**30), ("512MiB", 2**29), ("1.5 GiB", 3 * 2**29)])
def test_the_overhead_of_a_gpu_is_bytes_or_a_size(text: str, size: int) -> None:
    assert Settings.from_environment({"SHALE_GPU_OVERHEAD": text}).gpu_overhead_bytes == size


def test_no_load_timeout_means_for_ever() -> None:
    assert Settings.from_environment({"SHALE_LOAD_TIMEOUT": "0"}).load_timeout_s == math.inf


def test_the_home_directory_is_filled_in() -> None:
    assert Settings.from_environment({"SHALE_MODELS": "~/x"}).models == Path.home() / "x"


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("SHALE_HOST", "h:99999", "port of 0 to 65535"),
        ("SHALE_HOST", "https://h", "host:port"),
        ("SHALE_NUM_PARALLEL", "-1", "allowed: auto, or a whole number of 0 to 1024"),
        ("SHALE_NUM_PARALLEL", "1025", "allowed: auto, or a whole number of 0 to 1024"),
        ("OLLAMA_NUM_PARALLEL", "x", "allowed: auto, or a whole number of 0 to 1024"),
        ("SHALE_CONTEXT_LENGTH", "2", "allowed: 0, or a whole number of at least 4"),
        ("SHALE_CONTEXT_LENGTH", "-4", "allowed: 0, or a whole number of at least 4"),
        ("SHALE_MAX_QUEUE", "0", "allowed: a whole number of at least 1"),
        ("SHALE_DEVICES", "sim:0", "allowed: auto; cpu; or simulated devices alone, each of at least 1 byte"),
        ("SHALE_DEVICES", "cpu,sim:1GiB", "allowed: auto; cpu; or simulated devices alone"),
        ("SHALE_DEVICES", "8GiB", "such as sim:8GiB"),
        ("SHALE_DEVICES", "sim:8GB", "(B, KiB, MiB, GiB or TiB)"),
        ("SHALE_DEVICES", ",".join(["sim:1"] * 17), "at most 16 of them"),
        ("SHALE_DEVICES", "auto,cpu", "allowed: auto; cpu;"),
        ("SHALE_KERNELS", "quick", "fast, reference"),
        ("SHALE_CPU_ISA", "mmx", "avx512vnni"),
        ("SHALE_KEEP_ALIVE", "soon", "seconds"),
        ("SHALE_DEBUG", "maybe", "1 or 0"),
        ("OLLAMA_SCHED_SPREAD", "all", "1 or 0"),
        ("SHALE_GPU_OVERHEAD", "-1", "allowed: a number and B, KiB, MiB, GiB or TiB"),
        ("SHALE_GPU_OVERHEAD", "1GB", "allowed: a number and B, KiB, MiB, GiB or TiB"),
        ("SHALE_KV_CACHE_TYPE", "q9", "f16"),
        ("SHALE_KV_CACHE_TYPE", "f16,q9", "f16"),
        ("SHALE_KV_CACHE_TYPE", "f16,f16,f16", "keys and of values"),
    ],
)
def test_a_bad_value_is_an_error_that_names_variable_value_and_what_is_allowed(
    name: str, value: str, allowed: str
) -> None:
    with pytest.raises(SettingError) as caught:
        Settings.from_environment({name: value})
    text = str(caught.value)
    assert name in text
    assert repr(value) in text
    assert allowed in text


def test_what_looks_like_a_setting_and_is_none_is_told() -> None:
    environment = {"SHALE_NUM_PARALEL": "4", "SHALE_BOGUS": "1", "SHALE_EMPTY": " ", "SHALE_HOST": "h", "BOGUS": "1"}
    assert warnings(environment) == [
        "SHALE_BOGUS is no setting and has no effect",
        "SHALE_NUM_PARALEL is no setting and has no effect; is SHALE_NUM_PARALLEL meant?",
    ]


def test_variables_of_the_makefile_and_of_ollama_need_no_warning() -> None:
    assert warnings({"SHALE_PEER_PYTHON": "/x", "OLLAMA_BOGUS": "1", **dict.fromkeys(all_names(), "1")}) == []


def all_names() -> list[str]:
    return [name for row in rows().values() for name in row.names]


def test_every_setting_is_described() -> None:
    assert all(row.description and row.names[0].startswith("SHALE_") for row in rows().values())
